"""What a contender is, and what all of them compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Unavailable(Exception):  # noqa: N818 - nothing went wrong
    """A contender cannot take part here; the text is the reason."""


@dataclass(frozen=True)
class Subject:
    """The model that all contenders compute.

    reference: the stock model in float32. model: the same weights in `dtype`; the reference itself for float32.
    device: where both are. folder: an empty one, for files that a conversion writes.
    """

    reference: Any
    model: Any
    dtype: torch.dtype
    device: torch.device
    folder: Path

    @property
    def config(self) -> Any:
        return self.reference.config


class Contender(Protocol):
    """A way to compute final features of waveforms.

    name: as it stands in the report. batch: how many recordings it takes at once.
    quadratic: whether it keeps tensors of T² entries for each head.
    """

    name: str
    batch: int
    quadratic: bool

    def prepare(self, subject: Subject) -> None:
        """Loads, converts and compiles; not timed.

        Raises:
            Unavailable: it is not installed, or cannot compute this model on this device or in this dtype.
        """
        ...

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Final features [frames, channels], any device and dtype, of each waveform, float32 [samples], in order."""
        ...


def frames_of(config: Any, samples: int) -> int:
    """Frames that the convolutions make of so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def need_cpu(device: torch.device, whose: str) -> None:
    """Raises Unavailable on other devices than the CPU."""
    if device.type != "cpu":
        raise Unavailable(f"{whose} is compared on CPUs only")
