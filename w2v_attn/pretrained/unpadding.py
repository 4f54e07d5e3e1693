"""Hugging Face's encoders without work on padding: a batch is unpadded once, its frames side by side, [1, ΣT, C].

An encoder and the feed-forwards of its blocks are swapped in place, like attention: what goes in and what comes out is
what stock takes and gives, [B, T, C] and a mask. Between them only the attention and the positional convolution know
where a recording ends. Dropouts, LayerDrop, gradient checkpointing and hooks work as they do in stock; padded frames
come out as zeros.

Where hidden states or attentions are asked for, which transformers records block by block in the shape of the batch,
and where a graph is compiled, a call goes through stock's forward.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.modeling_outputs import BaseModelOutput

from w2v_attn.attention.feed_forward import feed_forward, is_gelu
from w2v_attn.attention.fourier import FourierConvolution
from w2v_attn.attention.layer import is_plain
from w2v_attn.attention.masks import AttentionMask
from w2v_attn.attention.mathematics import softmax_dtype
from w2v_attn.pretrained.blocks import GatedAttention
from w2v_attn.pretrained.contract import check, encoder_contracts
from w2v_attn.pretrained.families import FAMILIES
from w2v_attn.pretrained.swapping import become, derived, stock_class

RECORDED = ("output_attentions", "output_hidden_states")


class UnpaddedEncoder:
    """Stock's encoder with its forward over frames side by side. Its attention must be ours."""

    config: Any

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """hidden states [B, T, C] -> the same with what the blocks make of them; zeros where nothing real is.

        attention_mask: [B, T], true or 1 for real frames, which come first; None: all are.
        """
        graph = torch.compiler.is_compiling()  # compilers want shapes that do not depend on values
        lengths = None if graph else _lengths(hidden_states, attention_mask)
        if lengths is None or self._is_recorded(kwargs):
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        places = None if attention_mask is None else attention_mask.flatten().nonzero()[:, 0]
        frames = self._blocks(_unpad(hidden_states, places), lengths)
        return BaseModelOutput(last_hidden_state=_pad(frames, places, hidden_states))  # type: ignore[arg-type]

    def _blocks(self: Any, frames: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """[ΣT, C] -> [ΣT, C]."""
        x = frames + self._positions(frames, lengths)
        norm_first = type(self).__name__.endswith("StableLayerNorm")
        x = self.dropout(x if norm_first else self.layer_norm(x))[None]
        mask = AttentionMask(lengths=lengths)
        in_step = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)  # all processes run every block then
        gated = isinstance(self.layers[0].attention, GatedAttention)
        handed_on: dict[str, Tensor] = {}  # WavLM's table of biases, from its first block, which is never dropped
        for number, layer in enumerate(self.layers):
            # LayerDrop draws as stock does, so that the same seed leaves out the same blocks.
            may_drop = self.training and self.config.layerdrop > 0 and not (gated and number == 0)
            dropped = may_drop and torch.rand([]) < self.config.layerdrop
            if not dropped or in_step:
                output = layer(x, attention_mask=mask, **handed_on)
                x = output if isinstance(output, Tensor) else output[0]
                if gated:
                    handed_on["position_bias"] = output[1]
        return (self.layer_norm(x) if norm_first else x)[0]

    def _positions(self: Any, frames: Tensor, lengths: tuple[int, ...]) -> Tensor:
        fourier = FourierConvolution.of(self.pos_conv_embed, softmax_dtype(frames), live=True)
        if fourier is not None:
            return fourier(frames, lengths).to(frames.dtype)
        return torch.cat([self.pos_conv_embed(part[None])[0] for part in frames.split(list(lengths))])

    def _is_recorded(self, kwargs: dict[str, Any]) -> bool:
        return any(kwargs.get(name) or getattr(self.config, name, False) for name in RECORDED)


class OurFeedForward:
    """Stock's feed-forward with a derived backward."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        plain = is_plain(self.intermediate_dense) and is_plain(self.output_dense)
        if not plain or torch.compiler.is_compiling():
            return super().forward(hidden_states)  # type: ignore[misc]
        rate = self.intermediate_dropout.p if self.training else 0.0
        y = feed_forward(hidden_states, self.intermediate_dense, self.output_dense, dropout=rate)
        return self.output_dropout(y)


def unpad_encoders(model: nn.Module) -> None:
    """Swaps every encoder of `model` that can be unpadded, and the feed-forwards of its blocks; others stay stock's.

    Raises:
        ValueError: an encoder of this transformers is not the one we know; none is swapped then.
    """
    encoders = [module for module in model.modules() if _is_stock(module, UnpaddedEncoder, _ENCODERS)]
    for encoder in encoders:
        check(encoder_contracts(encoder), way_out="replace_attention(model, unpad=False)")
    for encoder in encoders:
        if why_not(encoder) is None:
            become(encoder, UnpaddedEncoder)
            for module in encoder.modules():
                if _is_stock(module, OurFeedForward, _FEED_FORWARDS):
                    become(module, OurFeedForward)


def pad_encoders(model: nn.Module) -> None:
    """Stock's encoders and feed-forwards again."""
    for module in model.modules():
        for ours in (UnpaddedEncoder, OurFeedForward):
            if isinstance(module, ours):
                module.__class__ = stock_class(module, ours)  # type: ignore[assignment]


def why_not(encoder: Any) -> str | None:
    """What of an encoder keeps it from being unpadded; None where nothing does."""
    if getattr(encoder.pos_conv_embed, "batch_norm", None) is not None:
        return "its batch norm takes its statistics from padded batches"
    if not all(is_gelu(layer.feed_forward.intermediate_act_fn) for layer in encoder.layers):
        return "its feed-forward has another activation than GELU"
    return None


def _lengths(hidden_states: Tensor, attention_mask: Tensor | None) -> tuple[int, ...] | None:
    """Real frames of each recording that has any; None where they do not come first."""
    B, T = hidden_states.shape[:2]
    if attention_mask is None:
        return (T,) * B if T else None
    real = attention_mask.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        return None
    return tuple(length for length in real.sum(-1).tolist() if length) or None


def _unpad(x: Tensor, places: Tensor | None) -> Tensor:
    """[B, T, C] -> [ΣT, C]. places: int64 [ΣT], of the real frames among all; None: all are real."""
    return x.flatten(0, 1) if places is None else x.flatten(0, 1).index_select(0, places)


def _pad(frames: Tensor, places: Tensor | None, like: Tensor) -> Tensor:
    """[ΣT, C] -> [B, T, C] with zeros elsewhere."""
    if places is None:
        return frames.view(like.shape)
    return frames.new_zeros(like.shape[0] * like.shape[1], like.shape[2]).index_copy(0, places, frames).view(like.shape)


# SEW's encoder squeezes batches as they are padded; convolutions in Conformers see what stands beside a frame.
_OTHERS = ("sew", "wav2vec2-conformer", "wav2vec2-bert")
_PREFIXES = {
    attention.removesuffix("Attention"): module
    for family, (module, attention) in FAMILIES.items()
    if family not in _OTHERS
}
_ENCODERS = {
    f"{prefix}Encoder{kind}": module for prefix, module in _PREFIXES.items() for kind in ("", "StableLayerNorm")
}
_FEED_FORWARDS = {f"{prefix}FeedForward": module for prefix, module in _PREFIXES.items()}


def _is_stock(module: nn.Module, ours: type, classes: dict[str, str]) -> bool:
    stock = stock_class(module, ours)
    return classes.get(stock.__name__) == stock.__module__


def __getattr__(name: str) -> type[nn.Module]:
    """Makes a class when a pickle asks for it by name."""
    for ours, classes in ((UnpaddedEncoder, _ENCODERS), (OurFeedForward, _FEED_FORWARDS)):
        if name in classes:
            return derived(ours, getattr(import_module(classes[name]), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
