"""Group-norm frontends hear each recording of a batch alone, as they will when the model is used.

In checkpoints such as wav2vec2-base the first convolution normalises each channel over all the time it is given. In a
padded batch that is the padding too, so what a recording becomes depends on the longest of its neighbours. Here the
convolutions run over one recording at a time, without its padding. Layer-norm frontends work frame by frame and stay as
they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def install(model: Any) -> None:
    """Takes the place of the frontend's forward, where it normalises over time."""
    for module in model.modules():
        if _normalises_over_time(module):
            module.forward = partial(_one_by_one, module, module.forward)


def uninstall(model: nn.Module) -> None:
    """Stock's frontend again."""
    for module in model.modules():
        if _normalises_over_time(module):
            vars(module).pop("forward", None)


@contextmanager
def lengths(model: nn.Module, samples: list[int]) -> Iterator[None]:
    """While open, the frontend knows how many samples each recording of its batch has."""
    frontends: list[Any] = [module for module in model.modules() if _normalises_over_time(module)]
    for module in frontends:
        module.lengths = samples
    try:
        yield
    finally:
        for module in frontends:
            del module.lengths


def _normalises_over_time(module: Any) -> bool:
    return hasattr(module, "conv_layers") and any(isinstance(part, nn.GroupNorm) for part in module.modules())


def _one_by_one(module: Any, forward: Any, input_values: Tensor) -> Tensor:
    """[B, samples] -> [B, channels, frames], zeros where a recording has ended."""
    known = getattr(module, "lengths", None)
    if known is None or len(known) == 1:
        return forward(input_values)
    features = [forward(row[None, :length]) for row, length in zip(input_values, known, strict=True)]
    frames = max(feature.shape[-1] for feature in features)
    return torch.cat([F.pad(feature, (0, frames - feature.shape[-1])) for feature in features])
