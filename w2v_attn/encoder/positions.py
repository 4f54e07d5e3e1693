"""What is added to the frames before the blocks, for recordings that lie side by side."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from w2v_attn.ops.fourier import FourierConvolution


class Positions(Protocol):
    """What is added to the frames before the blocks."""

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """[ΣT, C] of recordings of `lengths` frames -> [ΣT, C], in the dtype of the frames."""
        ...


class Module:
    """A positional embedding that is called as it is, one recording at a time."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        self._module, self._dtype = module, dtype

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Positions`."""
        parts = [self._module(part.to(self._dtype)[None])[0] for part in frames.split(list(lengths))]
        return torch.cat(parts).to(frames.dtype)


def positions_of(module: Any, *, wide: torch.dtype, dtype: torch.dtype) -> Positions:
    """The positional embedding of a Hugging Face encoder. wide: dtype of the frames. dtype: that of the module."""
    fourier = FourierConvolution.of(module, wide)
    return Module(module, dtype) if fourier is None else fourier
