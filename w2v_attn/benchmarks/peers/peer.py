"""What a contender is, and what all of them compute."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


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


class FinalFeatures(nn.Module):
    """A stock model as converters want it: one tensor [1, samples] in, one tensor [1, frames, channels] out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor) -> Tensor:
        return self.model(waveform).last_hidden_state


def library(name: str) -> Any:
    """The module of this name. Raises Unavailable where it is not installed, or does not start."""
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        package = name.split(".")[0]
        reason = f"{package} does not start: {first_line(error)}"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package:
            reason = f"{package} is not installed: pip install 'w2v_attn[benchmark]'"
        raise Unavailable(reason) from error


@contextmanager
def converting(what: str) -> Iterator[None]:
    """While open, converters and compilers do not chatter, and whatever they raise is Unavailable."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Unavailable:
        raise
    except Exception as error:  # they fail in many ways
        raise Unavailable(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error
    finally:
        logging.disable(before)


def first_line(error: Exception) -> str:
    """What an error says, without its details."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def need_cpu(device: torch.device, whose: str) -> None:
    """Raises Unavailable on other devices than the CPU."""
    if device.type != "cpu":
        raise Unavailable(f"{whose} is compared on CPUs only")
