"""Group-norm frontends normalise each recording of a batch alone, as they will when the model is used.

In checkpoints such as wav2vec2-base the first convolution normalises each channel over all the time it is given. In a
padded batch that is the padding too, so what a recording becomes depends on the longest of its neighbours. Here only
the frames of the recording itself are counted. All other steps of the convolutions see no further than their kernels,
and the frames of a recording none of its padding; layer-norm frontends are left as they are.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def install(model: nn.Module) -> None:
    """Takes the place of the forward of every group norm over time in the frontend of `model`."""
    for layer in _layers(model):
        layer.layer_norm.forward = partial(_normalise, layer.layer_norm, layer.layer_norm.forward)


def uninstall(model: nn.Module) -> None:
    """Stock's group norm again."""
    for layer in _layers(model):
        vars(layer.layer_norm).pop("forward", None)
        vars(layer.layer_norm).pop("frames", None)


def tell_lengths(model: nn.Module, samples: list[int]) -> None:
    """How many samples each recording of the batch has that comes next; it holds until the next one.

    A backward that computes activations again asks for it too, so it is not forgotten after the forward.
    """
    for layer in _layers(model):
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        layer.layer_norm.frames = [(count - kernel) // stride + 1 for count in samples]


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
