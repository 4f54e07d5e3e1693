"""The positional convolution over recordings that lie side by side, each for itself.

A grouped convolution of 128 frames is the one place where a direct product is a waste: by Fourier transform it takes
39 times fewer operations. With windows of N frames that overlap by kernel − 1, X(f) the transform of a window and W(f)
that of the kernel, Y(f) = X(f) conj(W(f)) is the transform of the correlation, right in its first N − kernel + 1
frames: one small product of channels for each frequency and group.

Source: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", section 8.7, overlap-save.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Windows transformed at once: about 2000 frames.
MOST_WINDOWS = 16


class Positions(Protocol):
    """What is added to the frames before the blocks."""

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """[ΣT, C] of recordings of `lengths` frames -> [ΣT, C], in the dtype of the frames."""
        ...


@dataclass(frozen=True)
class _Piece:
    """Frames `begin` to `end` of a recording that lies from `first` to `last`."""

    first: int
    last: int
    begin: int
    end: int
    num_windows: int


class FourierConvolution:
    """A grouped convolution of stride 1 with "same" padding, its activation, and a batch norm before it if any."""

    def __init__(self, convolution: nn.Conv1d, activation: Any, norm: nn.BatchNorm1d | None, dtype: torch.dtype):
        (self._kernel,), groups = convolution.kernel_size, convolution.groups
        self._window = 1 << (2 * self._kernel - 1).bit_length()
        self._hop = self._window - self._kernel + 1
        self._activation, self._norm, self._dtype = activation, norm, dtype
        out, wide = convolution.out_channels, convolution.in_channels // groups
        spectrum = torch.fft.rfft(convolution.weight.detach().to(dtype), n=self._window).conj()
        # [out, in of the group, f] as [f · group, in of the group, out of the group].
        self._spectrum = spectrum.view(groups, out // groups, wide, -1).permute(3, 0, 2, 1).flatten(0, 1).contiguous()
        self._groups = groups
        self._bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Positions`. Memory beside the result does not grow with it."""
        found = torch.empty_like(frames)
        for pieces in self._batches(lengths):
            windows = torch.cat([self._windows(frames, piece) for piece in pieces])
            convolved = self._convolve(windows).split([piece.num_windows for piece in pieces])
            for piece, part in zip(pieces, convolved, strict=True):
                found[piece.begin : piece.end] = part.flatten(0, 1)[: piece.end - piece.begin]
        return self._activation(found if self._bias is None else found.add_(self._bias))

    def _batches(self, lengths: Sequence[int]) -> Iterator[list["_Piece"]]:
        """All frames in pieces of one recording each, as many at once as make `MOST_WINDOWS`."""
        batch: list[_Piece] = []
        first = room = 0
        for length in lengths:
            last = first + length
            for begin in range(first, last, MOST_WINDOWS * self._hop):
                end = min(begin + MOST_WINDOWS * self._hop, last)
                piece = _Piece(first, last, begin, end, -(-(end - begin) // self._hop))
                if batch and piece.num_windows > room:
                    yield batch
                    batch = []
                room = (room if batch else MOST_WINDOWS) - piece.num_windows
                batch.append(piece)
            first = last
        if batch:
            yield batch

    def _windows(self, frames: Tensor, piece: "_Piece") -> Tensor:
        """[windows, N, C] that overlap; zeros before and after the recording."""
        before = self._kernel // 2
        begin, end = piece.begin - before, piece.begin - before + (piece.num_windows - 1) * self._hop + self._window
        inside = frames[max(begin, piece.first) : min(end, piece.last)]
        if self._norm is not None:
            inside = _batch_norm(inside, self._norm)
        padded = F.pad(inside, (0, 0, max(piece.first - begin, 0), max(end - piece.last, 0)))
        C = padded.shape[1]
        return padded.as_strided((piece.num_windows, self._window, C), (self._hop * C, C, 1))

    def _convolve(self, windows: Tensor) -> Tensor:
        """[windows, N, C] -> [windows, N − kernel + 1, C]."""
        count, _, C = windows.shape
        G, F_ = self._groups, self._window // 2 + 1
        spectrum = torch.fft.rfft(windows.to(self._dtype), dim=1).view(count, F_, G, C // G)
        product = torch.bmm(spectrum.permute(1, 2, 0, 3).reshape(F_ * G, count, C // G), self._spectrum)
        product = product.view(F_, G, count, C // G).permute(2, 0, 1, 3).reshape(count, F_, C)
        return torch.fft.irfft(product, n=self._window, dim=1)[:, : self._hop]


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
    convolution = getattr(module, "conv", None)
    known = isinstance(convolution, nn.Conv1d) and hasattr(module, "activation")
    if known and convolution.stride == (1,) and convolution.padding == (convolution.kernel_size[0] // 2,):
        return FourierConvolution(convolution, module.activation, getattr(module, "batch_norm", None), wide)
    return Module(module, dtype)


def _batch_norm(frames: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """[ΣT, C] by the statistics that the norm has learned."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (None if part is None else part.to(frames.dtype) for part in parts)
    return F.batch_norm(frames, mean, variance, weight, bias, False, 0.0, norm.eps)
