# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""Replacing Hugging Face's attention by ours, and restoring it.

A replaced block remains the same object: only its class changes, from the stock class to one derived from ours and the
stock class. So it has the very same parameters, state dict keys and hooks, and transformers, which records attentions
by class, still recognises it.
"""

from typing import TypeVar

import transformers
from torch import nn
from transformers import PretrainedConfig

from w2v_attn.attention.backends import select
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.checkpoints.families import FAMILIES, UNSUPPORTED, supported_families
from w2v_attn.patching.attention_blocks import HuggingFaceAttention, patched_attention_class
from w2v_attn.patching.class_swap import stock_class
from w2v_attn.patching.compat import attention_contract, check_contracts
from w2v_attn.patching.unpad import pad_encoders, unpad_encoders

Model = TypeVar("Model", bound=nn.Module)


def replace_attention(model: Model, *, backend: str = "auto", unpad: bool = False) -> Model:
    """Replace every wav2vec 2.0 style attention block of a model by `MultiHeadSelfAttention`, in place.

    Parameters are shared, not copied, and the keys of the state dict stay the same. Blocks that are replaced already
    only change their backend.

    Args:
        model: A Hugging Face model of a supported family, with or without a head, also inside other modules (PEFT,
            DDP).
        backend: Implementation of the attention: `auto`, `tiled`, `sdpa` or `triton`.
        unpad: Also run encoders without work on padding: a batch is packed, [1, ΣT, C], before the blocks and padded
            after them. Faster, also in training. Forward hooks on blocks then see packed frames.

    Returns:
        The model that was given.

    Raises:
        ValueError: no block to replace, or the installed transformers builds blocks that this package does not know.
            The model is then unchanged.

    Examples:
        >>> model = replace_attention(Wav2Vec2Model.from_pretrained("facebook/wav2vec2-base"))
    """
    select.check_backend(backend)
    blocks = [module for module in model.modules() if stock_attention_class(module) is not None]
    if not blocks:
        refused = UNSUPPORTED.get(str(getattr(getattr(model, "config", None), "model_type", None)))
        if refused is not None:
            raise ValueError(
                f"{type(model).__name__} is not supported: {refused}. Supported are {supported_families()}"
            )
        raise ValueError(
            f"found no attention block to replace in {type(model).__name__}, with transformers "
            f"{transformers.__version__}. Supported are the Hugging Face models of these families, with or without a "
            f"head: {supported_families()}"
        )
    if any(_moves_weights(getattr(block, "_hf_hook", None)) for block in blocks):
        raise ValueError(
            f"accelerate moves the weights of the attention blocks of this {type(model).__name__} between devices or "
            "from disk (device_map, offloading), and runs their stock forward for that: load the model without "
            "device_map, with dtype=torch.bfloat16 if memory is short, or remove the hooks once its weights are in "
            "memory: accelerate.hooks.remove_hook_from_submodules(model)"
        )
    check_contracts(((attention_contract(block), block) for block in blocks), remedy="keep stock attention")
    _check_whole(model, blocks)
    if unpad:
        unpad_encoders(model)
    configs = _configs(model)
    for block in blocks:
        stock = stock_attention_class(block)
        assert stock is not None
        block.__class__ = patched_attention_class(stock)  # type: ignore[assignment]
        block.on_patch(backend, configs.get(block))  # type: ignore[operator]
    return model


def restore_attention(model: Model) -> Model:
    """Undo `replace_attention`, in place: stock attention again, with the same parameters.

    Args:
        model: What `replace_attention` returned, or a model that contains it.

    Returns:
        The model that was given.

    Raises:
        ValueError: the model is some of WavLM's blocks without the encoder that they belong to.
    """
    _check_whole(model, [module for module in model.modules() if isinstance(module, HuggingFaceAttention)])
    for module in model.modules():
        if isinstance(module, HuggingFaceAttention):
            stock = stock_attention_class(module)
            assert stock is not None
            module.on_restore()
            module.__class__ = stock  # type: ignore[assignment]
    pad_encoders(model)
    return model


def backend_in_use(model: nn.Module) -> str:
    """Return the name of the backend that a model with our attention takes now, for hidden states without a mask."""
    block = next(module for module in model.modules() if isinstance(module, MultiHeadSelfAttention))
    return block.backend_for(next(block.parameters()).new_empty(1, 1, block.input_size))


def projection_names(model: nn.Module) -> list[str]:
    """Return the names of the projections in replaced attention blocks, such as q_proj, k_proj, v_proj and out_proj.

    They are the last parts of the names of modules, in the order queries, keys, values, output.
    """
    found: dict[str, None] = {}
    for block in model.modules():
        if isinstance(block, HuggingFaceAttention):
            names = {child: name for name, child in block.named_children()}
            found |= dict.fromkeys(names[projection] for projection in block.projections)
    return list(found)


def _moves_weights(hook: object) -> bool:
    """Return whether a hook of accelerate brings the weights of a module to its device when it is called."""
    return any(hasattr(one, "execution_device") for one in getattr(hook, "hooks", (hook,)))


def _check_whole(model: nn.Module, blocks: list[nn.Module]) -> None:
    """Raise ValueError if WavLM blocks are given without the encoder in which they pass on their position biases."""
    encoders = [m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList)]
    inside = {id(module) for encoder in encoders for module in encoder.modules()}
    if any(type(block).__name__ == "WavLMAttention" and id(block) not in inside for block in blocks):
        raise ValueError(
            f"WavLM's blocks pass their position biases on to each other, and replaced blocks pass a different tensor "
            f"than stock blocks, but {type(model).__name__} has only some of the blocks: pass the whole model"
        )


def _configs(model: nn.Module) -> dict[nn.Module, PretrainedConfig]:
    """Return the config of the innermost model that each module belongs to."""
    configs: dict[nn.Module, PretrainedConfig] = {}
    for parent in model.modules():  # parents come before their parts
        config = getattr(parent, "config", None)
        if isinstance(config, PretrainedConfig):
            configs |= dict.fromkeys(parent.modules(), config)
    return configs


def stock_attention_class(module: nn.Module) -> type[nn.Module] | None:
    """Return Hugging Face's class of an attention block, or None if it is not a block of a supported family.

    Only that class itself and our patched class count: another subclass may compute something else.
    """
    cls = stock_class(module, HuggingFaceAttention)
    return cls if (cls.__module__, cls.__qualname__) in FAMILIES.values() else None
