"""A feature encoder for training that computes each recording of a batch without padding, as extraction does.

If the convolutions are frozen, those of extraction run, see `encoder.frontend`; if they are trained on a CPU, those of
`encoder.frontend_train`. Neither computes padding.

Otherwise Hugging Face's convolutions run on the padded batch, and group norms normalize each recording by itself. In
checkpoints such as wav2vec2-base the first convolution normalizes each channel over time. In a padded batch this
includes the padding, so the features of a recording depend on the longest recording of its batch. Here only the frames
of the recording itself are included. All other convolutions see only the frames under their kernels, so the frames of a
recording do not depend on its padding; feature encoders with layer norm are unchanged.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.checkpoints.encoder_parts import encoder_parts, is_encoder
from w2v_attn.encoder import frontend_batched
from w2v_attn.encoder.frontend import Convolutions, unsupported_reason, write_blocks
from w2v_attn.encoder.frontend_train import TrainableConvolutions


def patch_frontend(model: nn.Module) -> None:
    """Patch the forward of all feature encoders in `model`, in place."""
    normalize_per_recording(model)
    for extractor in _extractors(model):
        extractor.forward = _UnpaddedForward(extractor)


def normalize_per_recording(model: nn.Module) -> None:
    """Patch the group norms over time in the feature encoder of `model`: each recording is normalized by itself."""
    for layer in _layers(model):
        layer.layer_norm.forward = partial(_normalize, layer.layer_norm, layer.layer_norm.forward)


def restore_frontend(model: nn.Module) -> None:
    """Undo `patch_frontend`."""
    for extractor in _extractors(model):
        vars(extractor).pop("forward", None)
    for layer in _layers(model):
        vars(layer.layer_norm).pop("forward", None)
        vars(layer.layer_norm).pop("frames", None)


def set_lengths(model: nn.Module, samples: list[int]) -> None:
    """Set the number of samples of each recording of the next batch.

    The values are kept after the forward, because gradient checkpointing needs them again in the backward.
    """
    for extractor in _extractors(model):
        if isinstance(extractor.forward, _UnpaddedForward):
            extractor.forward.samples = samples
    for layer in _layers(model):
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        layer.layer_norm.frames = [(count - kernel) // stride + 1 for count in samples]


class _UnpaddedForward:
    """The forward of a feature encoder. samples: the length of each recording of the batch."""

    def __init__(self, extractor: Any):
        self._extractor, self._stock = extractor, extractor.forward
        self.samples: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the rearranged weights, which cannot be copied and are rebuilt."""
        return {"_extractor": self._extractor, "_stock": self._stock, "samples": self.samples}

    @cached_property
    def _convolutions(self) -> Convolutions:
        return Convolutions(self._extractor)

    @cached_property
    def _learning(self) -> TrainableConvolutions:
        return TrainableConvolutions(self._extractor)

    @cached_property
    def _batched(self) -> dict[torch.dtype | None, frontend_batched.BatchedConvolutions]:
        return {}

    def __call__(self, input_values: Tensor) -> Tensor:
        """Return features [B, channels, T] of waveforms [B, samples], with zeros after the end of a recording.

        OmniASR's are [B, T, hidden size], projected, of waveforms [B, 1, samples].
        """
        layers = self._extractor.conv_layers
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in layers.parameters())
        if learns and not self._is_differentiable(input_values):
            return self._stock(input_values)
        projects = input_values.dim() == 3
        if projects:
            input_values = input_values[:, 0]
        # In evaluation each batch has one recording.
        samples = self.samples if self._extractor.training else [input_values.shape[1]] * len(input_values)
        waveforms = [waveform[:count] for waveform, count in zip(input_values, samples, strict=True)]
        counts = [self._convolutions.grid.count_frames(count) for count in samples]
        longest = self._convolutions.grid.count_frames(input_values.shape[1])
        frames = self._learned(waveforms, counts, longest) if learns else self._computed(waveforms, counts, longest)
        if projects:
            return self._extractor.projection(self._extractor.layer_norm(frames))
        return frames.transpose(1, 2)

    def _is_differentiable(self, input_values: Tensor) -> bool:
        """Return whether our convolutions are differentiable here: full precision on a CPU, without recomputation."""
        device, layers = input_values.device.type, self._extractor.conv_layers
        whole = layers[0].conv.weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device)
        twice = self._extractor.training and any(getattr(x, "gradient_checkpointing", False) for x in layers)
        return device == "cpu" and whole and not twice and not input_values.requires_grad

    def _learned(self, waveforms: list[Tensor], counts: list[int], longest: int) -> Tensor:
        """Return frames [B, longest, channels], differentiable."""
        parts = self._learning(waveforms).split(counts)
        return torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])

    @torch.no_grad()
    def _computed(self, waveforms: list[Tensor], counts: list[int], longest: int) -> Tensor:
        """Return frames [B, longest, channels] without gradients."""
        like, channels = waveforms[0], self._extractor.conv_layers[-1].conv.out_channels
        found = like.new_zeros(len(waveforms), longest, channels)
        device = like.device.type
        casts = torch.is_autocast_enabled(device) and like.dtype != torch.float64
        dtype = torch.get_autocast_dtype(device) if casts else None
        with torch.autocast(device, enabled=False):
            if frontend_batched.is_batching_faster(like.device):
                if dtype not in self._batched:
                    self._batched[dtype] = frontend_batched.BatchedConvolutions(self._extractor, dtype)
                self._batched[dtype].refresh()
                packed = torch.cat(list(self._batched[dtype](waveforms)))
                blocks = ([own] for own in packed.split(counts))
            else:
                self._convolutions.refresh()
                blocks = map(self._convolutions, waveforms)
            for frames, own in zip(found, blocks, strict=True):
                write_blocks(own, frames)
        return found


def _extractors(model: nn.Module) -> Iterator[Any]:
    """Yield the feature encoders that `encoder.frontend` supports."""
    for module in model.modules():
        if is_encoder(module) and unsupported_reason(module) is None:
            yield encoder_parts(module).feature_encoder


def _layers(model: nn.Module) -> Iterator[Any]:
    """Yield convolutions with a group norm; only the first one has it, so its frames follow from the samples."""
    for module in model.modules():
        if isinstance(getattr(module, "conv", None), nn.Conv1d) and isinstance(
            getattr(module, "layer_norm", None), nn.GroupNorm
        ):
            yield module


def _normalize(norm: Any, forward: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    """Normalize hidden states [B, channels, T], with zeros after the end of a recording."""
    T, frames = hidden_states.shape[-1], norm.frames if norm.training else ()
    if all(n == T for n in frames):  # no padding; in evaluation each batch has one recording
        return forward(hidden_states)
    rows = (forward(row[None, :, :n]) for row, n in zip(hidden_states, frames, strict=True))
    return torch.cat([F.pad(row, (0, T - row.shape[-1])) for row in rows])
