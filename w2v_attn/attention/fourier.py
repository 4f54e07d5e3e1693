"""A grouped convolution with a long kernel over recordings that lie side by side, each for itself, by Fourier transform.

wav2vec 2.0's positional convolution, 128 frames long, is the one place where a direct product is a waste: by Fourier
transform it takes 39 times fewer operations. With windows of N frames that overlap by kernel − 1, X(f) the transform of a window and W(f)
that of the kernel, Y(f) = X(f) conj(W(f)) is the transform of the correlation, right in its first N − kernel + 1
frames: one small product of channels for each frequency and group.

Source: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", section 8.7, overlap-save.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Windows transformed at once: about 2000 frames.
MOST_WINDOWS = 16


@dataclass(frozen=True)
class _Piece:
    """Frames `begin` to `end` of a recording that lies from `first` to `last`."""

    first: int
    last: int
    begin: int
    end: int
    num_windows: int


class FourierConvolution:
    """A grouped convolution of stride 1 with "same" padding, its activation, and a batch norm before it if any.

    dtype: of what is computed, float32 or float64.
    live: whether the kernel may change, or wants its gradient: then it is transformed at every call, else once.
    """

    def __init__(
        self, convolution: nn.Conv1d, activation: Any, norm: nn.BatchNorm1d | None, dtype: torch.dtype, *, live: bool
    ):
        self._convolution = convolution
        (self._kernel,), self._groups = convolution.kernel_size, convolution.groups
        self._window = 1 << (2 * self._kernel - 1).bit_length()
        self._hop = self._window - self._kernel + 1
        self._activation, self._norm, self._dtype = activation, norm, dtype
        self._spectrum = None if live else self._transform()

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype, *, live: bool = False) -> "FourierConvolution | None":
        """That of a Hugging Face positional embedding; None where it is another kind."""
        convolution = getattr(module, "conv", None)
        if not isinstance(convolution, nn.Conv1d) or not hasattr(module, "activation"):
            return None
        if convolution.stride != (1,) or convolution.padding != (convolution.kernel_size[0] // 2,):
            return None
        return cls(convolution, module.activation, getattr(module, "batch_norm", None), dtype, live=live)

    def _transform(self) -> tuple[Tensor, Tensor | None]:
        """conj(W(f)) as [f · group, in of the group, out of the group], and the bias."""
        convolution, groups = self._convolution, self._groups
        out, wide = convolution.out_channels, convolution.in_channels // groups
        spectrum = torch.fft.rfft(convolution.weight.to(self._dtype), n=self._window).conj()
        spectrum = spectrum.view(groups, out // groups, wide, -1).permute(3, 0, 2, 1).flatten(0, 1).contiguous()
        return spectrum, None if convolution.bias is None else convolution.bias.to(self._dtype)

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """[ΣT, C] of recordings of `lengths` frames -> [ΣT, C]. Memory beside the result does not grow with it."""
        spectrum, bias = self._transform() if self._spectrum is None else self._spectrum
        found = torch.empty_like(frames, dtype=self._dtype)
        for pieces in self._batches(lengths):
            windows = torch.cat([self._windows(frames, piece) for piece in pieces])
            convolved = self._convolve(windows, spectrum).split([piece.num_windows for piece in pieces])
            for piece, part in zip(pieces, convolved, strict=True):
                found[piece.begin : piece.end] = part.flatten(0, 1)[: piece.end - piece.begin]
        return self._activation(found if bias is None else found.add_(bias))

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
        """[windows, C, N] that overlap; zeros before and after the recording."""
        before = self._kernel // 2
        begin, end = piece.begin - before, piece.begin - before + (piece.num_windows - 1) * self._hop + self._window
        inside = frames[max(begin, piece.first) : min(end, piece.last)]
        if self._norm is not None:
            inside = _batch_norm(inside, self._norm)
        padded = F.pad(inside, (0, 0, max(piece.first - begin, 0), max(end - piece.last, 0)))
        return padded.unfold(0, self._window, self._hop)

    def _convolve(self, windows: Tensor, kernels: Tensor) -> Tensor:
        """[windows, C, N] -> [windows, N − kernel + 1, C]."""
        count, C, _ = windows.shape
        G, frequencies = self._groups, self._window // 2 + 1
        spectrum = torch.fft.rfft(windows.to(self._dtype)).view(count, G, C // G, frequencies)
        product = torch.bmm(spectrum.permute(3, 1, 0, 2).reshape(frequencies * G, count, C // G), kernels)
        product = product.view(frequencies, G, count, -1).permute(2, 0, 1, 3).reshape(count, frequencies, -1)
        return torch.fft.irfft(product, n=self._window, dim=1)[:, : self._hop]


def _batch_norm(frames: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """[ΣT, C] by the statistics that the norm has learned."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (None if part is None else part.to(frames.dtype) for part in parts)
    return F.batch_norm(frames, mean, variance, weight, bias, False, 0.0, norm.eps)
