"""The convolutions of a batch, each recording for itself, as they will be when the model is used.

Where they do not learn they are those of extraction, see `encoder.frontend`; where they do, on a CPU, those of
`encoder.frontend_train`. Neither computes padding.

Elsewhere stock's convolutions learn over the padded batch, and group-norm frontends normalise each recording alone.
In checkpoints such as wav2vec2-base the first convolution normalises each channel over all the time it is given. In a
padded batch that is the padding too, so what a recording becomes depends on the longest of its neighbours. Here only
the frames of the recording itself are counted. All other steps of the convolutions see no further than their kernels,
and the frames of a recording none of its padding; layer-norm frontends are left as they are.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.encoder import frontend_batched
from w2v_attn.encoder.frontend import Convolutions, unsupported_reason, write_blocks
from w2v_attn.encoder.frontend_train import TrainableConvolutions


def install(model: nn.Module) -> None:
    """Takes the place of the forward of the convolutions in `model`."""
    normalise_alone(model)
    for extractor in _extractors(model):
        extractor.forward = _Alone(extractor)


def normalise_alone(model: nn.Module) -> None:
    """Takes the place of the forward of every group norm over time in the frontend of `model`."""
    for layer in _layers(model):
        layer.layer_norm.forward = partial(_normalise, layer.layer_norm, layer.layer_norm.forward)


def uninstall(model: nn.Module) -> None:
    """Stock's frontend again."""
    for extractor in _extractors(model):
        vars(extractor).pop("forward", None)
    for layer in _layers(model):
        vars(layer.layer_norm).pop("forward", None)
        vars(layer.layer_norm).pop("frames", None)


def tell_lengths(model: nn.Module, samples: list[int]) -> None:
    """How many samples each recording of the batch has that comes next; it holds until the next one.

    A backward that computes activations again asks for it too, so it is not forgotten after the forward.
    """
    for extractor in _extractors(model):
        if isinstance(extractor.forward, _Alone):
            extractor.forward.samples = samples
    for layer in _layers(model):
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        layer.layer_norm.frames = [(count - kernel) // stride + 1 for count in samples]


class _Alone:
    """The forward of a feature extractor. samples: of each recording of the batch."""

    def __init__(self, extractor: Any):
        self._extractor, self._stock = extractor, extractor.forward
        self.samples: list[int] = []

    def __getstate__(self) -> dict[str, Any]:
        """For copies of a model: weights that are laid out cannot be copied, and are laid out anew."""
        return {"_extractor": self._extractor, "_stock": self._stock, "samples": self.samples}

    @cached_property
    def _convolutions(self) -> Convolutions:
        return Convolutions(self._extractor)

    @cached_property
    def _learning(self) -> TrainableConvolutions:
        return TrainableConvolutions(self._extractor)

    @cached_property
    def _together(self) -> dict[torch.dtype | None, frontend_batched.BatchedConvolutions]:
        return {}

    def __call__(self, input_values: Tensor) -> Tensor:
        """[B, samples] -> [B, channels, T], zeros where a recording has ended."""
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self._extractor.parameters())
        if learns and not self._learns_here(input_values):
            return self._stock(input_values)
        # In evaluation one recording is heard at a time.
        samples = self.samples if self._extractor.training else [input_values.shape[1]] * len(input_values)
        waveforms = [waveform[:count] for waveform, count in zip(input_values, samples, strict=True)]
        counts = [self._convolutions.grid.count_frames(count) for count in samples]
        longest = self._convolutions.grid.count_frames(input_values.shape[1])
        frames = self._learned(waveforms, counts, longest) if learns else self._computed(waveforms, counts, longest)
        return frames.transpose(1, 2)

    def _learns_here(self, input_values: Tensor) -> bool:
        """Whether ours are differentiable here: by the weights, in whole precision, and computed once."""
        device, layers = input_values.device.type, self._extractor.conv_layers
        whole = layers[0].conv.weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(device)
        twice = self._extractor.training and any(getattr(x, "gradient_checkpointing", False) for x in layers)
        return device == "cpu" and whole and not twice and not input_values.requires_grad

    def _learned(self, waveforms: list[Tensor], counts: list[int], longest: int) -> Tensor:
        """[B, longest, channels], differentiable."""
        parts = self._learning(waveforms).split(counts)
        return torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])

    @torch.no_grad()
    def _computed(self, waveforms: list[Tensor], counts: list[int], longest: int) -> Tensor:
        """The same without gradients."""
        like, channels = waveforms[0], self._extractor.conv_layers[-1].conv.out_channels
        found = like.new_zeros(len(waveforms), longest, channels)
        device = like.device.type
        casts = torch.is_autocast_enabled(device) and like.dtype != torch.float64
        dtype = torch.get_autocast_dtype(device) if casts else None
        with torch.autocast(device, enabled=False):
            if frontend_batched.is_batching_faster(like.device):
                if dtype not in self._together:
                    self._together[dtype] = frontend_batched.BatchedConvolutions(self._extractor, dtype)
                self._together[dtype].refresh()
                together = torch.cat(list(self._together[dtype](waveforms)))
                blocks = ([own] for own in together.split(counts))
            else:
                self._convolutions.refresh()
                blocks = map(self._convolutions, waveforms)
            for frames, own in zip(found, blocks, strict=True):
                write_blocks(own, frames)
        return found


def _extractors(model: nn.Module) -> Iterator[Any]:
    """Feature extractors that `encoder.frontend` can take the place of."""
    for module in model.modules():
        if hasattr(module, "feature_extractor") and unsupported_reason(module) is None:
            yield module.feature_extractor


def _layers(model: nn.Module) -> Iterator[Any]:
    """Convolutions with a group norm; only the first one has it, so its frames follow from the samples."""
    for module in model.modules():
        if isinstance(getattr(module, "conv", None), nn.Conv1d) and isinstance(
            getattr(module, "layer_norm", None), nn.GroupNorm
        ):
            yield module


def _normalise(norm: Any, forward: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    """[B, channels, T] -> the same, zeros where a recording has ended."""
    T, frames = hidden_states.shape[-1], norm.frames if norm.training else ()
    if all(n == T for n in frames):  # none is padded; in evaluation one recording is heard at a time
        return forward(hidden_states)
    rows = (forward(row[None, :, :n]) for row, n in zip(hidden_states, frames, strict=True))
    return torch.cat([F.pad(row, (0, T - row.shape[-1])) for row in rows])
