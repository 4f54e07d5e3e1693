"""The interface of contenders, and the model that all of them compute."""

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

from w2v_attn.checkpoints.errors import first_line


class Unavailable(Exception):  # noqa: N818 - not an error
    """A contender cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Subject:
    """The model that all contenders compute.

    Attributes:
        reference: The stock model in float32.
        model: The same weights in `dtype`; the reference itself for float32.
        dtype: Dtype that is compared.
        device: Device of both models.
        folder: An empty folder for files of a conversion.
    """

    reference: Any
    model: Any
    dtype: torch.dtype
    device: torch.device
    folder: Path

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.reference.config


class Contender(Protocol):
    """An implementation that computes the final features of waveforms.

    Attributes:
        name: Name in the report.
        batch: Number of recordings that it computes at once.
        quadratic: Whether it keeps tensors of T² entries for each head.
    """

    name: str
    batch: int
    quadratic: bool

    def prepare(self, subject: Subject) -> None:
        """Load, convert and compile the model; not timed.

        Raises:
            Unavailable: it is not installed, or cannot compute this model on this device or in this dtype.
        """
        ...

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return the final features of waveforms, float32 [samples], as [frames, channels] of any device and dtype."""
        ...


class FinalFeatures(nn.Module):
    """A stock model with the signature that converters need: [1, samples] in, [1, frames, channels] out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the final features, [1, frames, channels]."""
        return self.model(waveform).last_hidden_state


def library(name: str) -> Any:
    """Import a module by name.

    Raises:
        Unavailable: it is not installed, or its import fails.
    """
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        package = name.split(".")[0]
        reason = f"{package} cannot be imported: {first_line(error)}"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package:
            reason = f"{package} is not installed: pip install 'w2v_attn[benchmark]'"
        raise Unavailable(reason) from error


@contextmanager
def converting(what: str) -> Iterator[None]:
    """Silence converters and compilers, and turn their exceptions into Unavailable."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Unavailable:
        raise
    except Exception as error:  # converters raise exceptions of many classes
        raise Unavailable(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error
    finally:
        logging.disable(before)


def need_cpu(device: torch.device, whose: str) -> None:
    """Check that a device is the CPU.

    Raises:
        Unavailable: it is not.
    """
    if device.type != "cpu":
        raise Unavailable(f"{whose} is compared on CPUs only")
