"""Our attention in the place of Hugging Face's, and back.

A block that is replaced stays the same object: it only changes its class, from stock's to one that is ours and
stock's at once. So its parameters are shared in the strictest sense, the keys of the state dict cannot change, hooks on
it stay, and transformers, which records attentions by class, still recognises it.
"""

from importlib import import_module
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn

from w2v_attn.attention import cores
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.pretrained.contract import attention_contract, check
from w2v_attn.pretrained.families import FAMILIES, supported
from w2v_attn.pretrained.swapping import derived, stock_class
from w2v_attn.pretrained.unpadding import pad_encoders, unpad_encoders

Model = TypeVar("Model", bound=nn.Module)


def replace_attention(model: Model, *, backend: str = "auto", unpad: bool = False) -> Model:
    """The same model, in place, with every wav2vec 2.0 style attention block computed by our layer.

    model: a Hugging Face model of a supported family, base or with a head, also inside other modules (PEFT, DDP).
        Blocks that are ours already only change their backend.
    backend: the core, "auto", "explicit", "fused" or "triton".
    unpad: also let encoders and feed-forwards do no work on padding; see `unpadding.py`. Faster, also in training;
        forward hooks on blocks then see the frames of a batch side by side, [1, ΣT, C].

    Raises:
        ValueError: there is nothing to replace; or this transformers builds blocks that are not the ones we know, see
            `contract.py`; the model is then as it was.
    """
    cores.check_backend(backend)
    blocks = [module for module in model.modules() if _stock_class(module) is not None]
    if not blocks:
        raise ValueError(
            f"found no attention block to replace in {type(model).__name__}, with transformers "
            f"{transformers.__version__}. Supported are the Hugging Face models of these families, with or without a "
            f"head: {supported()}"
        )
    check(((attention_contract(block), block) for block in blocks), way_out="stay with stock's attention")
    if unpad:
        unpad_encoders(model)
    for block in blocks:
        _become_ours(block, backend)
    return model


def restore_attention(model: Model) -> Model:
    """The same model, in place, with stock attention again and the same parameters."""
    for module in model.modules():
        if isinstance(module, HuggingFaceAttention):
            stock = _stock_class(module)
            assert stock is not None
            module.__class__ = stock  # type: ignore[assignment]
            for name in _OUR_ATTRIBUTES:
                delattr(module, name)
    pad_encoders(model)
    return model


def core_in_use(model: nn.Module) -> str:
    """The name of the core that a model with our attention takes now, for hidden states without a mask."""
    block = next(module for module in model.modules() if isinstance(module, MultiHeadSelfAttention))
    return block.core_for(block.q_proj.weight.new_empty(1, 1, block.input_size))


class HuggingFaceAttention(MultiHeadSelfAttention):
    """Our layer with the arguments and return values of Hugging Face's attention blocks.

    Its instances were built by Hugging Face: `config`, `embed_dim`, `num_heads`, `dropout` and projections are theirs.
    """

    config: Any

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | AttentionMask | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [B, T, C] and, only when asked for, the probabilities [B, H, T, T].

        attention_mask: as transformers makes it for any of its implementations: float [B, 1, T, T] of 0 and the lowest
            number, bool [B, 1, T, T] with True = attend, or [B, T] with 1 = a real frame.
        output_attentions: None asks the model's config.

        Raises:
            ValueError: states of another sequence to attend; this is self-attention.
        """
        if key_value_states is not None:
            raise ValueError(
                "w2v_attn computes self-attention, but this block was given the states of another sequence to attend "
                "(key_value_states): call restore_attention(model) to use it as cross-attention"
            )
        if output_attentions is None:
            output_attentions = bool(getattr(self.config, "output_attentions", False))
        mask = _mask_from_transformers(attention_mask)
        return self.attend(hidden_states, mask, return_scores=output_attentions)


_OUR_ATTRIBUTES = ("input_size", "key_size", "value_size", "output_size", "scale", "backend")


def _become_ours(block: nn.Module, backend: str) -> None:
    stock = _stock_class(block)
    assert stock is not None
    block.__class__ = derived(HuggingFaceAttention, stock)  # type: ignore[assignment]
    width = block.embed_dim
    for name, value in zip(_OUR_ATTRIBUTES, (width, width, width, width, block.scaling, backend), strict=True):
        setattr(block, name, value)


def _stock_class(module: nn.Module) -> type[nn.Module] | None:
    """Hugging Face's class of this attention block; None where it is no block of a supported family.

    Exactly that class, or ours of it: a class that somebody derived from it may compute something else.
    """
    cls = stock_class(module, HuggingFaceAttention)
    return cls if (cls.__module__, cls.__qualname__) in FAMILIES.values() else None


def __getattr__(name: str) -> type[nn.Module]:
    """Makes the class of a family when a pickle asks for it by name."""
    for module_name, class_name in FAMILIES.values():
        if name == class_name:
            return derived(HuggingFaceAttention, getattr(import_module(module_name), class_name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _mask_from_transformers(attention_mask: Tensor | AttentionMask | None) -> AttentionMask:
    """transformers' conventions to ours. What a GPU holds is not looked into: that would make the host wait."""
    if attention_mask is None:
        return NO_MASK
    if isinstance(attention_mask, AttentionMask):  # from our own encoder
        return attention_mask
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"w2v_attn reads attention masks that are tensors, got {type(attention_mask).__name__}: load the model "
            'with attn_implementation="sdpa", "eager" or "flash_attention_2"'
        )
    if attention_mask.dim() == 2:
        return AttentionMask(padding=attention_mask.bool())
    on_cpu = attention_mask.device.type == "cpu"
    if attention_mask.dtype != torch.bool:
        lowest = torch.finfo(attention_mask.dtype).min
        forbidden = attention_mask <= lowest
        if not on_cpu or not bool((forbidden | (attention_mask == 0)).all()):
            return AttentionMask(bias=attention_mask)
        attention_mask = ~forbidden
    if on_cpu and attention_mask.shape[1] == 1 and attention_mask.shape[2] > 0:
        first_row = attention_mask[:, :, :1]
        if torch.equal(first_row.expand_as(attention_mask), attention_mask):
            return AttentionMask(padding=first_row[:, 0, 0])
    return AttentionMask(allowed=attention_mask)
