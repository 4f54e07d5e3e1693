"""Hugging Face's encoders without computation on padding: a batch is packed once, [1, ΣT, C].

An encoder, its blocks with their feed-forwards, the adapter after it and heads that count frames are patched in place,
like attention: inputs and outputs are those of stock, [B, T, C] and a mask. Inside only the attention, the positional
convolution, SEW's squeezing and the adapter use the lengths of recordings. Dropout, LayerDrop, gradient checkpointing
and hooks behave as in stock; padded frames of the output are zeros.

The input of a block depends on what transformers records of it, in the shape of the batch:

- nothing: packed frames, [1, ΣT, C];
- hidden states: padded frames, which the block packs inside;
- attention weights, or if real frames follow padding: padded frames, which no query attends.

Real frames are the same in all three. While a graph is compiled, the stock forward is called.
"""

import threading
from collections.abc import MutableMapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.plain import is_plain_linear, must_be_called, replaced_forward
from w2v_attn.checkpoints.encoder_parts import norms_first
from w2v_attn.checkpoints.families import FAMILIES
from w2v_attn.ops.feed_forward import feed_forward
from w2v_attn.ops.fourier import FourierConvolution
from w2v_attn.ops.numerics import softmax_dtype
from w2v_attn.patching.activations import is_gelu
from w2v_attn.patching.attention_blocks import GatedAttention
from w2v_attn.patching.class_swap import patch_module, patched_class, stock_class
from w2v_attn.patching.compat import ADAPTER, check_contracts, encoder_contracts
from w2v_attn.patching.padded_batch import BlockMask, PaddedBatch

# Output of an unpadded encoder -> its real frames, for the adapter after it, which gets no mask.
_RECORDINGS: MutableMapping[Tensor, PaddedBatch] = WeakTensorKeyDictionary()  # type: ignore[assignment]
# batch: of the last unpadded encoder in this thread, for an adapter whose input a hook replaced.
_LAST = threading.local()


class UnpaddedEncoder:
    """Stock's encoder with a forward over packed frames. Its attention must be ours."""

    config: Any
    # Frames that the forward of the positional embedding cuts off; None: as its module `padding` says.
    _removed: int | None = None

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Return the hidden states after the blocks, [B, T, C], with zeros in padded frames.

        Args:
            hidden_states: [B, T, C].
            attention_mask: [B, T], True or 1 for real frames; without a mask all frames are real.
            **kwargs: Passed to the blocks.
        """
        if not self._packs():
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        batch = PaddedBatch.of(hidden_states, attention_mask)
        if not self._can_unpad(batch):
            return self._forward_padded(hidden_states, batch, attention_mask, kwargs)
        final = self._run_packed(hidden_states, batch, kwargs)
        return BaseModelOutput(last_hidden_state=final)  # type: ignore[arg-type]

    def _packs(self: Any) -> bool:
        """Return whether the blocks may get packed frames now: compilers need shapes that values do not change."""
        return not torch.compiler.is_compiling() and all(map(_is_framewise, self.layers.modules()))

    def _run_packed(self: Any, hidden_states: Tensor, batch: PaddedBatch, kwargs: dict[str, Any]) -> Tensor:
        """Return the output for a batch in which the real frames come first, [B, T, C]."""
        frames, inner = self._pack(batch.unpad(hidden_states), batch)
        x = self._before_blocks(frames)
        weights = self._is_asked_for("output_attentions", kwargs)
        if weights or self._is_asked_for("output_hidden_states", kwargs):
            x = self._through_blocks(inner.pad(x), BlockMask(inner, unpads=not weights), kwargs)
            frames = inner.unpad(x)
        else:
            frames = self._through_blocks(x[None], AttentionMask(lengths=inner.lengths), kwargs)[0]
        final = self._unpack(self._after_blocks(frames), batch)
        _RECORDINGS[final] = batch
        _LAST.batch = batch
        return final

    def _can_unpad(self, batch: PaddedBatch) -> bool:
        """Return whether there are real frames and they come first."""
        return bool(batch.lengths)

    def _forward_padded(
        self: Any, hidden_states: Tensor, batch: PaddedBatch, attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Any:
        """Return the output for a batch in which real frames follow padding, or which has none."""
        final = self._run_padded(hidden_states, batch, kwargs)
        return BaseModelOutput(last_hidden_state=final)  # type: ignore[arg-type]

    def _run_padded(self: Any, hidden_states: Tensor, batch: PaddedBatch, kwargs: dict[str, Any]) -> Tensor:
        """Return the frames of such a batch, [B, T, C]."""
        x = self._before_blocks(self._with_padded_positions(hidden_states, batch))
        x = self._after_blocks(self._through_blocks(x, BlockMask(batch, unpads=False), kwargs))
        return batch.zeroed(x)

    def _pack(self, frames: Tensor, batch: PaddedBatch) -> tuple[Tensor, PaddedBatch]:
        """Return packed frames [ΣT, C] with their positions, and the batch that the blocks get."""
        return self._with_positions(frames, batch.lengths), batch

    def _unpack(self, frames: Tensor, batch: PaddedBatch) -> Tensor:
        """Return the output of the blocks in the shape of the input batch, [B, T, C]."""
        return batch.pad(frames)

    def _before_blocks(self: Any, x: Tensor) -> Tensor:
        return self.dropout(x if norms_first(self) else self.layer_norm(x))

    def _after_blocks(self: Any, x: Tensor) -> Tensor:
        return self.layer_norm(x) if norms_first(self) else x

    def _through_blocks(self: Any, x: Tensor, mask: AttentionMask | BlockMask, kwargs: dict[str, Any]) -> Tensor:
        """Return the output of the blocks, in the shape of x: [1, ΣT, C] or [B, T, C]."""
        runs_all = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self)  # all processes run every block then
        gated = isinstance(self.layers[0].attention, GatedAttention)
        shared: dict[str, Tensor] = {}  # WavLM's table of biases, from its first block, which is never dropped
        for number, layer in enumerate(self.layers):
            # LayerDrop draws as in stock, so that the same seed drops the same blocks.
            dropped = not (gated and number == 0) and self._drops_block()
            if not dropped or runs_all:
                output = layer(x, attention_mask=mask, **shared, **kwargs)
                x = output if isinstance(output, Tensor) else output[0]
                if gated:
                    shared["position_bias"] = output[1]
        return x

    def _drops_block(self: Any) -> bool:
        return self.training and self.config.layerdrop > 0 and bool(torch.rand([]) < self.config.layerdrop)

    @property
    def _positions(self: Any) -> nn.Module:
        return self.pos_conv_embed

    def _add_positions(self, x: Tensor) -> Tensor:
        """Return x plus its positional embeddings, computed by the module, [B, T, C]."""
        return x + self._positions(x)

    def _with_positions(self: Any, frames: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return packed frames plus their positional embeddings, [ΣT, C]."""
        module = self._positions
        if not any(must_be_called(part) for part in module.modules()):
            fourier = FourierConvolution.of(module, softmax_dtype(frames), trainable=True, removed=self._removed)
            if fourier is not None:
                return frames + fourier(frames, lengths).to(frames.dtype)
        return torch.cat([self._add_positions(part[None])[0] for part in frames.split(list(lengths))])

    def _with_padded_positions(self: Any, hidden_states: Tensor, batch: PaddedBatch) -> Tensor:
        """Return frames with zeros in padding, plus their positional embeddings, [B, T, C]."""
        x, module = batch.zeroed(hidden_states), self._positions
        layers = getattr(module, "layers", None)
        if layers is None or batch.real is None or must_be_called(module):
            return self._add_positions(x)
        # Data2Vec has several convolutions; those of stock read what the previous one computed in the padding.
        y = x.transpose(1, 2)
        for layer in layers:
            y = layer(y).masked_fill(~batch.real.unsqueeze(1), 0.0)
        return x + y.transpose(1, 2)

    def _is_asked_for(self, name: str, kwargs: dict[str, Any]) -> bool:
        """Return whether transformers records this output; hidden states may be requested by number, including 0."""
        asked = kwargs.get(name, getattr(self.config, name, False))
        return asked is not None and asked is not False


class UnpaddedSqueezingEncoder(UnpaddedEncoder):
    """Encoder of SEW: its blocks get one frame for several, and their output is upsampled again.

    Stock squeezes the last frames of a recording together with its padding; here they are left out, as in a batch of
    one.
    """

    def _can_unpad(self: Any, batch: PaddedBatch) -> bool:
        return bool(batch.lengths) and max(batch.lengths) >= self.upsample.squeeze_factor

    def _forward_padded(
        self: Any, hidden_states: Tensor, batch: PaddedBatch, attention_mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Any:
        return super(UnpaddedEncoder, self).forward(  # type: ignore[misc]
            hidden_states, attention_mask=attention_mask, **kwargs
        )

    def _pack(self: Any, frames: Tensor, batch: PaddedBatch) -> tuple[Tensor, PaddedBatch]:
        factor, parts = self.upsample.squeeze_factor, []
        for part in frames.split(list(batch.lengths)):
            if len(part) >= factor:
                channels_first = part.T[None]
                places, pooled = self.pos_conv_embed(channels_first), self.pool(channels_first)
                parts.append((pooled + places[..., : pooled.shape[-1]])[0].T)
        counts = tuple(count // factor for count in batch.counts or ())
        return torch.cat(parts), PaddedBatch.of_counts(counts, batch.shape[1] // factor, frames.device)

    def _unpack(self: Any, frames: Tensor, batch: PaddedBatch) -> Tensor:
        factor = self.upsample.squeeze_factor
        counts = tuple(count // factor * factor for count in batch.counts or ())
        whole = PaddedBatch.of_counts(counts, batch.shape[1], frames.device)
        return whole.pad(self.upsample(frames[None])[0])


class UnpaddedAudioModel(UnpaddedEncoder):
    """The model of OmniASR, which is an encoder itself: waveforms in, frames after the blocks out."""

    _removed = 1

    def forward(  # type: ignore[override]
        self: Any,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        output_attention_mask: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the hidden states after the blocks, [B, T, C], with zeros in padded frames, and the mask of frames.

        Args:
            input_values: [B, 1, samples].
            padding_mask: [B, samples], True or 1 for real samples; without a mask all are real.
            output_attention_mask: Whether the output has the mask of the frames, int32 [B, T], if there is a mask.
            **kwargs: Passed to the blocks, and to what records their outputs.
        """
        if not torch.compiler.is_compiling():
            self.register_outputs()  # for copies in other processes
        run = self._forward_recorded if self._packs() else super(UnpaddedEncoder, self).forward  # type: ignore[misc]
        return run(input_values, padding_mask=padding_mask, output_attention_mask=output_attention_mask, **kwargs)

    def register_outputs(self: Any) -> None:
        """Tell transformers what it can record: it knows classes by their full name, and this one has changed."""
        from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

        _CAN_RECORD_REGISTRY[self] = self._can_record_outputs

    @merge_with_config_defaults
    @capture_outputs
    def _forward_recorded(
        self: Any, input_values: Tensor, padding_mask: Tensor | None, output_attention_mask: bool, **kwargs: Any
    ) -> Any:
        from transformers.models.omniasr.modeling_omniasr import OmniASREncoderModelOutput

        hidden_states = self.subsampling(input_values)
        real = None
        if padding_mask is not None:
            real = self._get_output_attention_mask(padding_mask, target_length=hidden_states.shape[1])
        batch = PaddedBatch.of(hidden_states, real)
        run = self._run_packed if self._can_unpad(batch) else self._run_padded
        return OmniASREncoderModelOutput(
            last_hidden_state=run(hidden_states, batch, kwargs),  # type: ignore[arg-type]
            attention_mask=real.int() if output_attention_mask and real is not None else None,  # type: ignore[arg-type]
        )

    def _before_blocks(self, x: Tensor) -> Tensor:
        return x

    def _after_blocks(self: Any, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer_norm(x), p=self.hidden_dropout, training=self.training)

    def _drops_block(self: Any) -> bool:
        return self.training and bool(torch.rand([]) < self.layerdrop)  # stock draws even if none is dropped

    @property
    def _positions(self: Any) -> nn.Module:
        return self.encode_positions

    def _add_positions(self, x: Tensor) -> Tensor:
        return self._positions(x)


class UnpaddedSqueezedClassifier:
    """Stock's classifier of SEW, with the right lengths when it pools a weighted sum of squeezed layers."""

    def _get_feature_vector_attention_mask(self: Any, feature_vector_length: int, attention_mask: Tensor) -> Tensor:
        if not self.config.use_weighted_layer_sum:
            return super()._get_feature_vector_attention_mask(feature_vector_length, attention_mask)  # type: ignore[misc]
        lengths = self._get_feat_extract_output_lengths(attention_mask.sum(-1)) // self.config.squeeze_factor
        return torch.arange(feature_vector_length, device=lengths.device) < lengths[:, None]


class UnpaddedBlock:
    """Stock's block, which packs padded frames inside if its mask says so."""

    def forward(self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Return the output of the block, [B, T, C] or [1, ΣT, C] like its input, alone or first in a tuple."""

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
    """Stock's adapter, the strided convolutions after an encoder, with the results of a batch of one.

    Frames after the end of a recording are set to zero in every layer, like the padding of a convolution.
    """

    proj: nn.Module | None
    proj_layer_norm: nn.Module | None
    layers: nn.ModuleList

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """Return the frames after the convolutions: [B, T, C] -> [B, T′, C′]."""
        batch, last = _RECORDINGS.get(hidden_states), vars(_LAST).pop("batch", None)
        if batch is None and last is not None and last.shape == hidden_states.shape[:2]:
            batch = last  # a hook on the encoder replaced its output
        if batch is None or batch.real is None or torch.compiler.is_compiling():
            return super().forward(hidden_states)  # type: ignore[misc]
        lengths = batch.real.sum(-1)
        x = hidden_states
        if self.proj is not None and self.proj_layer_norm is not None:
            x = self.proj_layer_norm(self.proj(x))
        x = _zero_after(x.transpose(1, 2), lengths)
        for layer in self.layers:
            # Drawn from numpy, as in stock, so that the same seed drops the same layers.
            if self._keeps_layer():
                conv = layer.conv
                x = layer(x)
                lengths = (lengths + 2 * conv.padding[0] - conv.kernel_size[0]).div(
                    conv.stride[0], rounding_mode="floor"
                ) + 1
                x = _zero_after(x, lengths)
        return x.transpose(1, 2)

    def _keeps_layer(self: Any) -> bool:
        drawn = np.random.random()
        return not self.training or drawn > self.layerdrop


class UnpaddedXVector:
    """Stock's x-vector head, pooling only frames whose time-delay layers do not read padding.

    Stock ignores the dilation of these layers when it computes their lengths.
    """

    def _get_tdnn_output_lengths(self: Any, input_lengths: Any) -> Any:
        for layer in self.tdnn:
            input_lengths = input_lengths - layer.dilation * (layer.kernel_size - 1)
        return input_lengths


class FusedFeedForward:
    """Stock's feed-forward with a derived backward."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """Return the output of the feed-forward: [..., C] -> [..., C]."""
        if torch.compiler.is_compiling() or not self._is_plain():
            return super().forward(hidden_states)  # type: ignore[misc]
        rate = self.intermediate_dropout.p if self.training else 0.0
        y = feed_forward(hidden_states, self.intermediate_dense, self.output_dense, dropout=rate)
        return self.output_dropout(y)

    def _is_plain(self: Any) -> bool:
        """Return whether this is two linear maps with GELU and dropout in between, none of which must be called."""
        dropout = self.intermediate_dropout
        return (
            is_plain_linear(self.intermediate_dense)
            and is_plain_linear(self.output_dense)
            and type(dropout) is nn.Dropout
            and not must_be_called(dropout)
            and dropout.training == self.training
            and is_gelu(self.intermediate_act_fn)
            and replaced_forward(type(self)) is None
        )


# Packages whose modules in a block compute each frame separately, except attention, which is ours.
_PACKAGES = "transformers w2v_attn peft bitsandbytes torchao deepspeed torch.ao torch.distributed torch.nn.utils"
_TORCH = "activation container dropout linear normalization sparse"
_FRAMEWISE = (
    *(f"{name}." for name in _PACKAGES.split()),
    *(f"torch.nn.modules.{name}" for name in _TORCH.split()),
)
# Classes of these packages that mix frames.
_ACROSS_FRAMES = (nn.MultiheadAttention, nn.Softmax2d, nn.GroupNorm, nn.LocalResponseNorm, nn.EmbeddingBag)


def _is_framewise(module: nn.Module) -> bool:
    """Return whether a module in a block computes each frame separately, so that it may get packed frames."""
    cls = type(module)
    if replaced_forward(cls) is not None or isinstance(module, _ACROSS_FRAMES):
        return False
    if cls.__module__.startswith("transformers."):
        return not hasattr(module, "attention") and not cls.__name__.endswith("Attention")
    return cls.__module__.startswith(_FRAMEWISE)


def _zero_after(x: Tensor, lengths: Tensor) -> Tensor:
    """Return x [B, C, T] with zeros after the end of each recording."""
    padded = torch.arange(x.shape[-1], device=x.device) >= lengths.unsqueeze(-1)
    return x.masked_fill(padded.unsqueeze(1), 0.0)


def unpad_encoders(model: nn.Module) -> None:
    """Patch every encoder of `model` that can be unpadded, with its blocks, adapter and heads; others stay stock.

    Raises:
        ValueError: an encoder of the installed transformers differs from what we require. Nothing is patched then.
    """
    encoders = [module for module in model.modules() if any(_is_stock(module, ours) for ours in _ENCODERS)]
    adapters = [module for module in model.modules() if _is_stock(module, UnpaddedAdapter)]
    for encoder in encoders:
        check_contracts(encoder_contracts(encoder), remedy="replace_attention(model, unpad=False)")
    check_contracts(((ADAPTER, adapter) for adapter in adapters), remedy="replace_attention(model, unpad=False)")
    for encoder in encoders:
        if unsupported_reason(encoder) is None:
            patch_module(encoder, next(ours for ours in _ENCODERS if _is_stock(encoder, ours)))
            if isinstance(encoder, UnpaddedAudioModel):
                encoder.register_outputs()
            for module in encoder.modules():
                for ours in (UnpaddedBlock, FusedFeedForward):
                    if _is_stock(module, ours):
                        patch_module(module, ours)
    for adapter in adapters:
        patch_module(adapter, UnpaddedAdapter)
    for module in model.modules():
        for ours in (UnpaddedXVector, UnpaddedSqueezedClassifier):
            if _is_stock(module, ours):
                patch_module(module, ours)


def pad_encoders(model: nn.Module) -> None:
    """Undo `unpad_encoders`: restore the stock classes."""
    for module in model.modules():
        for ours in _CLASSES:
            if isinstance(module, ours):
                module.__class__ = stock_class(module, ours)  # type: ignore[assignment]


def unsupported_reason(encoder: Any) -> str | None:
    """Return why an encoder cannot be unpadded, or None if it can."""
    if getattr(getattr(encoder, "pos_conv_embed", None), "batch_norm", None) is not None:
        return "its batch norm computes statistics over padded batches"
    return None


# Conformer blocks have convolutions, which mix frames.
_CONFORMERS = ("wav2vec2-conformer", "wav2vec2-bert")
_PREFIXES = {
    attention.removesuffix("Attention"): module
    for family, (module, attention) in FAMILIES.items()
    if family not in _CONFORMERS
}


def _stock_names(*suffixes: str) -> dict[str, str]:
    """Return {class name: module} of stock's classes: the prefix of each family with each of these suffixes."""
    return {f"{prefix}{suffix}": module for prefix, module in _PREFIXES.items() for suffix in suffixes}


_CLASSES: dict[type, dict[str, str]] = {
    UnpaddedEncoder: {
        name: module
        for name, module in _stock_names("Encoder", "EncoderStableLayerNorm").items()
        if name != "SEWEncoder"
    },
    UnpaddedSqueezingEncoder: {"SEWEncoder": _PREFIXES["SEW"]},
    UnpaddedAudioModel: {"OmniASRAudioModel": _PREFIXES["OmniASR"]},
    UnpaddedSqueezedClassifier: {"SEWForSequenceClassification": _PREFIXES["SEW"]},
    UnpaddedBlock: _stock_names("EncoderLayer", "EncoderLayerStableLayerNorm"),
    UnpaddedAdapter: _stock_names("Adapter"),
    UnpaddedXVector: _stock_names("ForXVector"),
    FusedFeedForward: _stock_names("FeedForward"),
}


_ENCODERS = (UnpaddedEncoder, UnpaddedSqueezingEncoder, UnpaddedAudioModel)


def _is_stock(module: nn.Module, ours: type) -> bool:
    stock = stock_class(module, ours)
    return _CLASSES[ours].get(stock.__name__) == stock.__module__


def __getattr__(name: str) -> type[nn.Module]:
    """Return a patched class, which pickles refer to by name; it is created on first access."""
    for ours, names in _CLASSES.items():
        if name in names:
            return patched_class(ours, getattr(import_module(names[name]), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
