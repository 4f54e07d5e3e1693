"""Hugging Face's encoders without work on padding: a batch is unpadded once, its frames side by side, [1, ΣT, C].

An encoder, its blocks with their feed-forwards, the adapter behind it and heads that count frames are swapped in place,
like attention: what goes in and what comes out is what stock takes and gives, [B, T, C] and a mask. Between them only
the attention, the positional convolution, SEW's squeezing and the adapter know where a recording ends. Dropouts,
LayerDrop, gradient checkpointing and hooks work as they do in stock; padded frames come out as zeros.

How a block is called depends on what transformers records of it, in the shape of the batch:

- nothing: it sees the frames of all recordings, [1, ΣT, C];
- hidden states: it is given padded frames, and unpads them inside;
- attention weights, or where real frames follow padding: it computes padded frames, which nobody attends.

Real frames are the same in all three. Where a graph is compiled, a call goes through stock's forward.
"""

import threading
from collections.abc import MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.modeling_outputs import BaseModelOutput

from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.plain import is_observed, is_plain, replaced_forward
from w2v_attn.checkpoints.families import FAMILIES
from w2v_attn.ops.feed_forward import feed_forward
from w2v_attn.ops.fourier import FourierConvolution
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.patching.activations import is_gelu
from w2v_attn.patching.attention_blocks import GatedAttention
from w2v_attn.patching.class_swap import become, derived, stock_class
from w2v_attn.patching.compat import ADAPTER, check, encoder_contracts


@dataclass(frozen=True)
class PaddedBatch:
    """Which frames of a batch [B, T, C] are real.

    real: bool [B, T]; None: all. counts: real frames of each recording, where they come first; else None.
    places: int64 [ΣT], of the real frames among all; None: all.
    """

    shape: tuple[int, int]
    real: Tensor | None
    counts: tuple[int, ...] | None
    places: Tensor | None

    @classmethod
    def of(cls, hidden_states: Tensor, attention_mask: Tensor | None) -> "PaddedBatch":
        """attention_mask: [B, T], true or 1 for real frames; None: all are."""
        B, T = hidden_states.shape[:2]
        if attention_mask is None:
            return cls((B, T), None, (T,) * B, None)
        real = attention_mask.bool()
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            return cls((B, T), real, None, None)
        return cls((B, T), real, tuple(real.sum(-1).tolist()), real.flatten().nonzero()[:, 0])

    @classmethod
    def of_counts(cls, counts: tuple[int, ...], T: int, device: torch.device) -> "PaddedBatch":
        """Recordings of so many frames, padded to T."""
        real = torch.arange(T, device=device) < torch.tensor(counts, device=device)[:, None]
        return cls((len(counts), T), real, counts, real.flatten().nonzero()[:, 0])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real frames of each recording that has any; empty where they do not come first."""
        return tuple(count for count in self.counts or () if count)

    def unpad(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [ΣT, C]."""
        return x.flatten(0, 1) if self.places is None else x.flatten(0, 1).index_select(0, self.places)

    def pad(self, frames: Tensor) -> Tensor:
        """[ΣT, C] -> [B, T, C] with zeros elsewhere."""
        B, T = self.shape
        if self.places is None:
            return frames.unflatten(0, (B, T))
        padded = frames.new_zeros(B * T, frames.shape[-1]).index_copy(0, self.places, frames)
        return padded.unflatten(0, (B, T))

    def zeroed(self, x: Tensor) -> Tensor:
        """[B, T, C] with zeros in padded frames."""
        return x if self.real is None else x.masked_fill(~self.real.unsqueeze(-1), 0.0)


# What unpadded encoders gave out -> which of its frames are real, for the adapter behind them, which is given no mask.
_RECORDINGS: MutableMapping[Tensor, PaddedBatch] = WeakTensorKeyDictionary()  # type: ignore[assignment]
# batch: of the last unpadded encoder in this thread, for an adapter that is given what a hook made of its frames.
_LAST = threading.local()


@dataclass(frozen=True)
class BlockMask:
    """What a block that is given padded frames gets for a mask. unpads: whether it leaves the padding out inside."""

    batch: PaddedBatch
    unpads: bool


class UnpaddedEncoder:
    """Stock's encoder with its forward over frames side by side. Its attention must be ours."""

    config: Any

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """hidden states [B, T, C] -> the same with what the blocks make of them; zeros where nothing real is.

        attention_mask: [B, T], true or 1 for real frames; None: all are.
        """
        if torch.compiler.is_compiling():  # compilers want shapes that do not depend on values
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        if not all(map(_is_framewise, self.layers.modules())):
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        batch = PaddedBatch.of(hidden_states, attention_mask)
        if not self._can_unpad(batch):
            return self._forward_padded(hidden_states, batch, attention_mask, kwargs)
        frames, inner = self._enter(batch.unpad(hidden_states), batch)
        x = self._before_blocks(frames)
        weights = self._is_asked_for("output_attentions", kwargs)
        if weights or self._is_asked_for("output_hidden_states", kwargs):
            x = self._through_blocks(inner.pad(x), BlockMask(inner, unpads=not weights), kwargs)
            frames = inner.unpad(x)
        else:
            frames = self._through_blocks(x[None], AttentionMask(lengths=inner.lengths), kwargs)[0]
        final = self._leave(self._after_blocks(frames), batch)
        _RECORDINGS[final] = batch
        _LAST.batch = batch
        return BaseModelOutput(last_hidden_state=final)  # type: ignore[arg-type]

    def _can_unpad(self, batch: PaddedBatch) -> bool:
        """Whether there are real frames, and they come first."""
        return bool(batch.lengths)

    def _forward_padded(
        self: Any, hidden_states: Tensor, batch: PaddedBatch, attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Any:
        """The forward of a batch in which real frames follow padding, or which has none."""
        x = self._before_blocks(self._with_padded_positions(hidden_states, batch))
        x = self._after_blocks(self._through_blocks(x, BlockMask(batch, unpads=False), kwargs))
        return BaseModelOutput(last_hidden_state=batch.zeroed(x))  # type: ignore[arg-type]

    @property
    def _norms_first(self) -> bool:
        return type(self).__name__.endswith("StableLayerNorm")

    def _enter(self, frames: Tensor, batch: PaddedBatch) -> tuple[Tensor, PaddedBatch]:
        """Frames [ΣT, C] with their positions, and the batch that the blocks see."""
        return frames + self._positions(frames, batch.lengths), batch

    def _leave(self, frames: Tensor, batch: PaddedBatch) -> Tensor:
        """What the blocks made of the frames, as the batch that came in: [B, T, C]."""
        return batch.pad(frames)

    def _before_blocks(self: Any, x: Tensor) -> Tensor:
        return self.dropout(x if self._norms_first else self.layer_norm(x))

    def _after_blocks(self: Any, x: Tensor) -> Tensor:
        return self.layer_norm(x) if self._norms_first else x

    def _through_blocks(self: Any, x: Tensor, mask: AttentionMask | BlockMask, kwargs: dict[str, Any]) -> Tensor:
        """[1, ΣT, C] or [B, T, C] -> the same."""
        in_step = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)  # all processes run every block then
        gated = isinstance(self.layers[0].attention, GatedAttention)
        handed_on: dict[str, Tensor] = {}  # WavLM's table of biases, from its first block, which is never dropped
        for number, layer in enumerate(self.layers):
            # LayerDrop draws as stock does, so that the same seed leaves out the same blocks.
            may_drop = self.training and self.config.layerdrop > 0 and not (gated and number == 0)
            dropped = may_drop and torch.rand([]) < self.config.layerdrop
            if not dropped or in_step:
                output = layer(x, attention_mask=mask, **handed_on, **kwargs)
                x = output if isinstance(output, Tensor) else output[0]
                if gated:
                    handed_on["position_bias"] = output[1]
        return x

    def _positions(self: Any, frames: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Of the frames of recordings that lie side by side, [ΣT, C]."""
        module = self.pos_conv_embed
        if not any(is_observed(part) for part in module.modules()):
            fourier = FourierConvolution.of(module, softmax_dtype(frames), live=True)
            if fourier is not None:
                return fourier(frames, lengths).to(frames.dtype)
        return torch.cat([module(part[None])[0] for part in frames.split(list(lengths))])

    def _with_padded_positions(self: Any, hidden_states: Tensor, batch: PaddedBatch) -> Tensor:
        """Frames with zeros in padding and their positions added, [B, T, C]: where real frames follow padding."""
        x, module = batch.zeroed(hidden_states), self.pos_conv_embed
        layers = getattr(module, "layers", None)
        if layers is None or batch.real is None or is_observed(module):
            return x + module(x)
        # Data2Vec's convolutions follow each other, and stock's see in the padding what the one before left there.
        y = x.transpose(1, 2)
        for layer in layers:
            y = layer(y).masked_fill(~batch.real.unsqueeze(1), 0.0)
        return x + y.transpose(1, 2)

    def _is_asked_for(self, name: str, kwargs: dict[str, Any]) -> bool:
        """Whether transformers records this output; hidden states may be asked for by number, of which 0 is one."""
        asked = kwargs.get(name, getattr(self.config, name, False))
        return asked is not None and asked is not False


class UnpaddedSqueezingEncoder(UnpaddedEncoder):
    """SEW's: its blocks see one frame for some, and what they give is spread over as many again.

    Stock squeezes the last frames of a recording with its padding; here they are left out, as where it is alone.
    """

    def _can_unpad(self: Any, batch: PaddedBatch) -> bool:
        return bool(batch.lengths) and max(batch.lengths) >= self.upsample.squeeze_factor

    def _forward_padded(
        self: Any, hidden_states: Tensor, batch: PaddedBatch, attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Any:
        return super(UnpaddedEncoder, self).forward(  # type: ignore[misc]
            hidden_states, attention_mask=attention_mask, **kwargs
        )

    def _enter(self: Any, frames: Tensor, batch: PaddedBatch) -> tuple[Tensor, PaddedBatch]:
        factor, parts = self.upsample.squeeze_factor, []
        for part in frames.split(list(batch.lengths)):
            if len(part) >= factor:
                channels_first = part.T[None]
                places, pooled = self.pos_conv_embed(channels_first), self.pool(channels_first)
                parts.append((pooled + places[..., : pooled.shape[-1]])[0].T)
        counts = tuple(count // factor for count in batch.counts or ())
        return torch.cat(parts), PaddedBatch.of_counts(counts, batch.shape[1] // factor, frames.device)

    def _leave(self: Any, frames: Tensor, batch: PaddedBatch) -> Tensor:
        factor = self.upsample.squeeze_factor
        counts = tuple(count // factor * factor for count in batch.counts or ())
        whole = PaddedBatch.of_counts(counts, batch.shape[1], frames.device)
        return whole.pad(self.upsample(frames[None])[0])


class UnpaddedSqueezedClassifier:
    """Stock's classifier of SEW, which pools a weighted sum of squeezed layers by the lengths that they have."""

    def _get_feature_vector_attention_mask(self: Any, feature_vector_length: int, attention_mask: Tensor) -> Tensor:
        if not self.config.use_weighted_layer_sum:
            return super()._get_feature_vector_attention_mask(feature_vector_length, attention_mask)  # type: ignore[misc]
        lengths = self._get_feat_extract_output_lengths(attention_mask.sum(-1)) // self.config.squeeze_factor
        return torch.arange(feature_vector_length, device=lengths.device) < lengths[:, None]


class UnpaddedBlock:
    """Stock's block, which may be given padded frames and leave the padding out inside."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        """hidden states [B, T, C] or [1, ΣT, C] -> the same, alone or first of several values."""

        def compute(x: Tensor, mask: Any) -> tuple[Tensor, tuple[Any, ...] | None]:
            output = super(UnpaddedBlock, self).forward(x, attention_mask=mask, **kwargs)  # type: ignore[misc]
            return (output, None) if isinstance(output, Tensor) else (output[0], output[1:])

        if not isinstance(attention_mask, BlockMask):
            y, others = compute(hidden_states, attention_mask)
        elif attention_mask.unpads:
            batch = attention_mask.batch
            y, others = compute(batch.unpad(hidden_states)[None], AttentionMask(lengths=batch.lengths))
            y = batch.pad(y[0])
        else:
            batch = attention_mask.batch
            mask = NO_MASK if batch.real is None else AttentionMask(padding=batch.real)
            y, others = compute(hidden_states, mask)
            y = batch.zeroed(y)
        return y if others is None else (y, *others)


class UnpaddedAdapter:
    """Stock's adapter, the strided convolutions behind an encoder, over each recording as if it were alone.

    Behind a recording stand zeros in every layer, as its padding would be.
    """

    proj: nn.Module | None
    proj_layer_norm: nn.Module | None
    layers: nn.ModuleList

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """[B, T, C] -> [B, T′, C′]."""
        batch, last = _RECORDINGS.get(hidden_states), vars(_LAST).pop("batch", None)
        if batch is None and last is not None and last.shape == hidden_states.shape[:2]:
            batch = last  # a hook on the encoder gave other frames in the place of its own
        if batch is None or batch.real is None or torch.compiler.is_compiling():
            return super().forward(hidden_states)  # type: ignore[misc]
        lengths = batch.real.sum(-1)
        x = hidden_states
        if self.proj is not None and self.proj_layer_norm is not None:
            x = self.proj_layer_norm(self.proj(x))
        x = _zeros_behind(x.transpose(1, 2), lengths)
        for layer in self.layers:
            # Drawn as stock does, from numpy, so that the same seed leaves out the same layers.
            if self._keeps_layer():
                conv = layer.conv
                x = layer(x)
                lengths = (lengths + 2 * conv.padding[0] - conv.kernel_size[0]).div(
                    conv.stride[0], rounding_mode="floor"
                ) + 1
                x = _zeros_behind(x, lengths)
        return x.transpose(1, 2)

    def _keeps_layer(self: Any) -> bool:
        drawn = np.random.random()
        return not self.training or drawn > self.layerdrop


class UnpaddedXVector:
    """Stock's x-vector head, pooling the frames whose time-delay layers see nothing of the padding.

    Stock leaves the dilation of these layers out when it counts them.
    """

    def _get_tdnn_output_lengths(self: Any, input_lengths: Any) -> Any:
        for layer in self.tdnn:
            input_lengths = input_lengths - layer.dilation * (layer.kernel_size - 1)
        return input_lengths


class FusedFeedForward:
    """Stock's feed-forward with a derived backward."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        if torch.compiler.is_compiling() or not self._is_plain():
            return super().forward(hidden_states)  # type: ignore[misc]
        rate = self.intermediate_dropout.p if self.training else 0.0
        y = feed_forward(hidden_states, self.intermediate_dense, self.output_dense, dropout=rate)
        return self.output_dropout(y)

    def _is_plain(self: Any) -> bool:
        """Whether it is two linear maps with GELU and dropout between, and none of these has to be called."""
        dropout = self.intermediate_dropout
        return (
            is_plain(self.intermediate_dense)
            and is_plain(self.output_dense)
            and type(dropout) is nn.Dropout
            and not is_observed(dropout)
            and dropout.training == self.training
            and is_gelu(self.intermediate_act_fn)
            and replaced_forward(type(self)) is None
        )


# Packages whose modules see one frame at a time where they are put in a block, but for attention, which is ours.
_PACKAGES = "transformers w2v_attn peft bitsandbytes torchao deepspeed torch.ao torch.distributed torch.nn.utils"
_TORCH = "activation container dropout linear normalization sparse"
_FRAMEWISE = (
    *(f"{name}." for name in _PACKAGES.split()),
    *(f"torch.nn.modules.{name}" for name in _TORCH.split()),
)
# Classes of these packages that see several.
_ACROSS_FRAMES = (nn.MultiheadAttention, nn.Softmax2d, nn.GroupNorm, nn.LocalResponseNorm, nn.EmbeddingBag)


def _is_framewise(module: nn.Module) -> bool:
    """Whether a module in a block may be given the frames of several recordings at once."""
    cls = type(module)
    if replaced_forward(cls) is not None or isinstance(module, _ACROSS_FRAMES):
        return False
    if cls.__module__.startswith("transformers."):
        return not hasattr(module, "attention") and not cls.__name__.endswith("Attention")
    return cls.__module__.startswith(_FRAMEWISE)


def _zeros_behind(x: Tensor, lengths: Tensor) -> Tensor:
    """[B, C, T] with zeros from the length of each recording on."""
    padded = torch.arange(x.shape[-1], device=x.device) >= lengths.unsqueeze(-1)
    return x.masked_fill(padded.unsqueeze(1), 0.0)


def unpad_encoders(model: nn.Module) -> None:
    """Swaps every encoder of `model` that can be unpadded, and what belongs to it; others stay stock's.

    Raises:
        ValueError: an encoder of this transformers is not the one we know; none is swapped then.
    """
    encoders = [module for module in model.modules() if any(_is_stock(module, ours) for ours in _ENCODERS)]
    adapters = [module for module in model.modules() if _is_stock(module, UnpaddedAdapter)]
    for encoder in encoders:
        check(encoder_contracts(encoder), way_out="replace_attention(model, unpad=False)")
    check(((ADAPTER, adapter) for adapter in adapters), way_out="replace_attention(model, unpad=False)")
    for encoder in encoders:
        if why_not(encoder) is None:
            become(encoder, next(ours for ours in _ENCODERS if _is_stock(encoder, ours)))
            for module in encoder.modules():
                for ours in (UnpaddedBlock, FusedFeedForward):
                    if _is_stock(module, ours):
                        become(module, ours)
    for adapter in adapters:
        become(adapter, UnpaddedAdapter)
    for module in model.modules():
        for ours in (UnpaddedXVector, UnpaddedSqueezedClassifier):
            if _is_stock(module, ours):
                become(module, ours)


def pad_encoders(model: nn.Module) -> None:
    """Stock's encoders, and what belongs to them, again."""
    for module in model.modules():
        for ours in _CLASSES:
            if isinstance(module, ours):
                module.__class__ = stock_class(module, ours)  # type: ignore[assignment]


def why_not(encoder: Any) -> str | None:
    """What of an encoder keeps it from being unpadded; None where nothing does."""
    if getattr(encoder.pos_conv_embed, "batch_norm", None) is not None:
        return "its batch norm takes its statistics from padded batches"
    return None


# Convolutions in Conformers see what stands beside a frame.
_OTHERS = ("wav2vec2-conformer", "wav2vec2-bert")
_PREFIXES = {
    attention.removesuffix("Attention"): module
    for family, (module, attention) in FAMILIES.items()
    if family not in _OTHERS
}


def _stock_names(*suffixes: str) -> dict[str, str]:
    """Name -> module of stock's classes that are called as families, and then one of these."""
    return {f"{prefix}{suffix}": module for prefix, module in _PREFIXES.items() for suffix in suffixes}


_CLASSES: dict[type, dict[str, str]] = {
    UnpaddedEncoder: {
        name: module
        for name, module in _stock_names("Encoder", "EncoderStableLayerNorm").items()
        if name != "SEWEncoder"
    },
    UnpaddedSqueezingEncoder: {"SEWEncoder": _PREFIXES["SEW"]},
    UnpaddedSqueezedClassifier: {"SEWForSequenceClassification": _PREFIXES["SEW"]},
    UnpaddedBlock: _stock_names("EncoderLayer", "EncoderLayerStableLayerNorm"),
    UnpaddedAdapter: _stock_names("Adapter"),
    UnpaddedXVector: _stock_names("ForXVector"),
    FusedFeedForward: _stock_names("FeedForward"),
}


_ENCODERS = (UnpaddedEncoder, UnpaddedSqueezingEncoder)


def _is_stock(module: nn.Module, ours: type) -> bool:
    stock = stock_class(module, ours)
    return _CLASSES[ours].get(stock.__name__) == stock.__module__


def __getattr__(name: str) -> type[nn.Module]:
    """Makes a class when a pickle asks for it by name."""
    for ours, names in _CLASSES.items():
        if name in names:
            return derived(ours, getattr(import_module(names[name]), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
