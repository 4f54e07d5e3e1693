"""What we rely on in transformers' classes, and how the installed classes differ from it.

A patched module keeps its parameters but not its computation. Anything that a new version of transformers adds to that
computation would be lost silently, so we check first: the arguments of the forward, and the submodules, parameters and
attributes of the module.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig

from w2v_attn.attention.plain import replaced_forward
from w2v_attn.checkpoints.encoder_parts import encoder_parts

# The newest transformers that this was compared and tested with.
NEWEST_KNOWN = "5.24.0"


@dataclass(frozen=True)
class Contract:
    """What we require of a class of transformers to patch it.

    forward: the arguments of its forward in order, without `**kwargs`.
    parts: names of its modules, parameters and buffers. optional: names of those that may be missing.
    attributes: names of other attributes that we read, with their types.
    square: those parts that are linear maps with equal input and output sizes, all the same.
    """

    forward: tuple[str, ...]
    parts: frozenset[str]
    optional: frozenset[str] = frozenset()
    attributes: tuple[tuple[str, type | tuple[type, ...]], ...] = ()
    square: tuple[str, ...] = ()

    def differences(self, module: nn.Module) -> list[str]:
        """Return descriptions of how a module, patched or not, differs from this contract."""
        return [*self._of_forward(module), *self._of_parts(module), *self._of_attributes(module)]

    def _of_forward(self, module: nn.Module) -> Iterator[str]:
        if (found := _arguments(_stock(module).forward)) != self.forward:
            yield f"expected forward({', '.join(self.forward)}), found forward({', '.join(found)})"
        if (source := replaced_forward(_stock(module))) is not None:
            yield f"expected its own forward, found one of {source} instead"
        if "forward" in vars(module):
            yield "found a forward on the instance instead of its class's"

    def _of_parts(self, module: nn.Module) -> Iterator[str]:
        found = _parts(module)
        if missing := self.parts - found:
            yield f"expected the parts {_listed(missing)}, which are missing"
        if unknown := found - self.parts - self.optional:
            yield f"found the parts {_listed(unknown)}, which are unknown"

    def _of_attributes(self, module: nn.Module) -> Iterator[str]:
        for name, types in self.attributes:
            value = getattr(module, name, None)
            if not isinstance(value, types):
                yield f"expected {name} to be {_named(types)}, found {value!r}"
        if getattr(module, "is_causal", False):
            yield "found is_causal=True: its frames attend only earlier frames"
        linears = [part for name in self.square if isinstance(part := getattr(module, name, None), nn.Linear)]
        if len(sizes := {size for part in linears for size in (part.in_features, part.out_features)}) > 1:
            yield f"expected {_listed(self.square)} of one size, found {sorted(sizes)} channels"


_QKV = ("q_proj", "k_proj", "v_proj", "out_proj")
_SIZES = (("embed_dim", int), ("num_heads", int), ("head_dim", int), ("scaling", float), ("dropout", (int, float)))
_ATTENTION = Contract(
    forward=("hidden_states", "key_value_states", "attention_mask", "output_attentions"),
    parts=frozenset(_QKV),
    attributes=(*_SIZES, ("config", PretrainedConfig)),
    square=_QKV,
)
_WAVLM = Contract(
    forward=("hidden_states", "attention_mask", "position_bias", "index"),
    parts=frozenset((*_QKV, "gru_rel_pos_const", "gru_rel_pos_linear")),
    optional=frozenset({"rel_attn_embed"}),
    attributes=(*_SIZES, ("num_buckets", int), ("max_distance", int)),
    square=_QKV,
)
_LINEARS = ("linear_q", "linear_k", "linear_v", "linear_out")
_CONFORMER = Contract(
    forward=("hidden_states", "attention_mask", "relative_position_embeddings"),
    parts=frozenset((*_LINEARS, "dropout")),
    optional=frozenset({"linear_pos", "pos_bias_u", "pos_bias_v", "distance_embedding"}),
    attributes=(
        ("num_heads", int),
        ("head_size", int),
        ("scaling", float),
        ("position_embeddings_type", (str, type(None))),
        ("config", PretrainedConfig),
    ),
    square=_LINEARS,
)
# The attention blocks that are not wav2vec 2.0's own.
_OTHER_ATTENTION = {
    "WavLMAttention": _WAVLM,
    "Wav2Vec2ConformerSelfAttention": _CONFORMER,
    "Wav2Vec2BertSelfAttention": _CONFORMER,
}

_BLOCK = Contract(
    forward=("hidden_states", "attention_mask"),
    parts=frozenset({"attention", "dropout", "layer_norm", "feed_forward", "final_layer_norm"}),
    optional=frozenset({"adapter_layer"}),
)


_WAVLM_BLOCKS = {
    "WavLMEncoderLayer": replace(_BLOCK, forward=_WAVLM.forward),
    "WavLMEncoderLayerStableLayerNorm": replace(_BLOCK, forward=_WAVLM.forward[:-1]),  # without an index
}
_FEED_FORWARD = Contract(
    forward=("hidden_states",),
    parts=frozenset({"intermediate_dropout", "intermediate_dense", "output_dense", "output_dropout"}),
    optional=frozenset({"intermediate_act_fn"}),  # a function when the config names one
)
_ENCODER = Contract(
    forward=("hidden_states", "attention_mask"),
    parts=frozenset({"pos_conv_embed", "layer_norm", "dropout", "layers"}),
    optional=frozenset({"pool", "upsample"}),  # SEW's
    attributes=(("config", PretrainedConfig),),
)
_AUDIO_MODEL = Contract(  # of OmniASR, whose model has the forward of an encoder
    forward=("input_values", "padding_mask", "output_attention_mask"),
    parts=frozenset({"subsampling", "encode_positions", "layers", "layer_norm"}),
    attributes=(("config", PretrainedConfig), ("layerdrop", (int, float)), ("hidden_dropout", (int, float))),
)
_SUBSAMPLING = Contract(
    forward=("hidden_states",),
    parts=frozenset({"conv_layers", "layer_norm", "projection"}),
)
_POSITIONS = Contract(forward=("hidden_states",), parts=frozenset({"conv"}), optional=frozenset({"activation"}))
ADAPTER = Contract(
    forward=("hidden_states",),
    parts=frozenset({"layers"}),
    optional=frozenset({"proj", "proj_layer_norm"}),
    attributes=(("layerdrop", (int, float)),),
)
_CONVOLUTION = Contract(
    forward=("hidden_states",), parts=frozenset({"conv"}), optional=frozenset({"layer_norm", "activation"})
)
_PROJECTION = Contract(
    forward=("hidden_states",), parts=frozenset({"projection", "dropout"}), optional=frozenset({"layer_norm"})
)


def attention_contract(block: nn.Module) -> Contract:
    """Return the contract of an attention block."""
    return _OTHER_ATTENTION.get(_stock(block).__name__, _ATTENTION)


def encoder_contracts(encoder: Any) -> Iterator[tuple[Contract, nn.Module]]:
    """Yield the contract and module of an encoder, and of all its submodules that we patch besides attention."""
    if _stock(encoder).__name__ == "OmniASRAudioModel":
        yield _AUDIO_MODEL, encoder
        yield _POSITIONS, encoder.encode_positions
    else:
        yield _ENCODER, encoder
    for block in encoder.layers:
        yield _WAVLM_BLOCKS.get(_stock(block).__name__, _BLOCK), block
        yield _FEED_FORWARD, block.feed_forward


def frontend_contracts(model: Any) -> Iterator[tuple[Contract, nn.Module]]:
    """Yield the contract and module of the convolutions and the feature projection.

    SEW has a linear map as its projection, or none.
    """
    for layer in encoder_parts(model).convolutions:
        yield _CONVOLUTION, layer
    if hasattr(model, "subsampling"):
        yield _SUBSAMPLING, model.subsampling
    projection = getattr(model, "feature_projection", None)
    if projection is not None and not isinstance(projection, nn.Linear):
        yield _PROJECTION, projection


def check_contracts(contracts: Iterable[tuple[Contract, nn.Module]], *, remedy: str) -> None:
    """Check modules against their contracts.

    Args:
        contracts: Contracts and the modules that must satisfy them.
        remedy: What a user can do without the patch, for the message.

    Raises:
        ValueError: a module differs; the message has its class, what was expected and what was found.
    """
    for contract, module in contracts:
        if wrong := contract.differences(module):
            raise ValueError(
                f"the {_stock(module).__name__} of transformers {transformers.__version__} is not the one that "
                f"w2v_attn replaces, so results could be wrong: {'; '.join(wrong)}. Supported are "
                f'transformers 5.17 to {NEWEST_KNOWN}: pip install "transformers>=5.17,<={NEWEST_KNOWN}", or {remedy}'
            )


def _stock(module: nn.Module) -> type[nn.Module]:
    """Return transformers' class of a module, patched or not."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("w2v_attn."))


@lru_cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments of a forward, without `self` and `**kwargs`."""
    _, *arguments = inspect.signature(forward).parameters.values()
    return tuple(argument.name for argument in arguments if argument.kind is not argument.VAR_KEYWORD)


def _parts(module: nn.Module) -> set[str]:
    registered: tuple[dict[str, Any], ...] = (module._modules, module._parameters, module._buffers)
    return {name for parts in registered for name, part in parts.items() if part is not None}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _named(types: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in (types if isinstance(types, tuple) else (types,)))
