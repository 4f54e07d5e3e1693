"""Our attention in the place of Hugging Face's, and back.

A block that is replaced stays the same object: it only changes its class, from stock's to one that is ours and
stock's at once. So its parameters are shared in the strictest sense, the keys of the state dict cannot change, hooks on
it stay, and transformers, which records attentions by class, still recognises it.
"""

from typing import TypeVar

import transformers
from torch import nn
from transformers import PretrainedConfig

from w2v_attn.attention.backends import select
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.checkpoints.families import FAMILIES, UNSUPPORTED, supported_families
from w2v_attn.patching.attention_blocks import HuggingFaceAttention, ours_for
from w2v_attn.patching.class_swap import stock_class
from w2v_attn.patching.compat import attention_contract, check
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
    blocks = [module for module in model.modules() if _stock_class(module) is not None]
    if not blocks:
        refused = UNSUPPORTED.get(str(getattr(getattr(model, "config", None), "model_type", None)))
        if refused is not None:
            raise ValueError(
                f"{type(model).__name__} cannot be served: {refused}. Supported are {supported_families()}"
            )
        raise ValueError(
            f"found no attention block to replace in {type(model).__name__}, with transformers "
            f"{transformers.__version__}. Supported are the Hugging Face models of these families, with or without a "
            f"head: {supported_families()}"
        )
    check(((attention_contract(block), block) for block in blocks), way_out="stay with stock's attention")
    _check_whole(model, blocks)
    if unpad:
        unpad_encoders(model)
    configs = _configs(model)
    for block in blocks:
        stock = _stock_class(block)
        assert stock is not None
        block.__class__ = ours_for(stock)  # type: ignore[assignment]
        block.adopt(backend, configs.get(block))  # type: ignore[operator]
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
            stock = _stock_class(module)
            assert stock is not None
            module.leave()
            module.__class__ = stock  # type: ignore[assignment]
    pad_encoders(model)
    return model


def backend_in_use(model: nn.Module) -> str:
    """Return the name of the backend that a model with our attention takes now, for hidden states without a mask."""
    block = next(module for module in model.modules() if isinstance(module, MultiHeadSelfAttention))
    return block.backend_for(next(block.parameters()).new_empty(1, 1, block.input_size))


def _check_whole(model: nn.Module, blocks: list[nn.Module]) -> None:
    """Raises ValueError where WavLM's blocks would be changed without those that they hand biases on to."""
    encoders = [m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList)]
    inside = {id(module) for encoder in encoders for module in encoder.modules()}
    if any(type(block).__name__ == "WavLMAttention" and id(block) not in inside for block in blocks):
        raise ValueError(
            f"WavLM's blocks hand their position biases on to each other, in another form than stock's when they are "
            f"replaced, and {type(model).__name__} is only some of them: give the whole model"
        )


def _configs(model: nn.Module) -> dict[nn.Module, PretrainedConfig]:
    """The config of the model that each module is in: the innermost one's."""
    found = {}
    for parent in model.modules():  # parents come before their parts
        config = getattr(parent, "config", None)
        if isinstance(config, PretrainedConfig):
            found |= dict.fromkeys(parent.modules(), config)
    return found


def _stock_class(module: nn.Module) -> type[nn.Module] | None:
    """Hugging Face's class of this attention block; None where it is no block of a supported family.

    Exactly that class, or ours of it: a class that somebody derived from it may compute something else.
    """
    cls = stock_class(module, HuggingFaceAttention)
    return cls if (cls.__module__, cls.__qualname__) in FAMILIES.values() else None
