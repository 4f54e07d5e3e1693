"""The positional convolution over recordings that lie side by side, each for itself.

A grouped convolution of 128 frames is the one place where a direct product is a waste: by Fourier transform it takes
39 times fewer operations. With windows of N frames that overlap by kernel − 1, X(f) the transform of a window and W(f)
that of the kernel, Y(f) = X(f) conj(W(f)) is the transform of the correlation, right in its first N − kernel + 1
frames: one small product of channels for each frequency and group.

Source: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", section 8.7, overlap-save.
"""

from collections.abc import Sequence
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


class FourierConvolution:
    """A grouped convolution of stride 1 with "same" padding, its activation, and a batch norm before it if any."""

    def __init__(self, convolution: nn.Conv1d, activation: Any, norm: nn.BatchNorm1d | None, dtype: torch.dtype):
        (self._kernel,), groups = convolution.kernel_size, convolution.groups
        self._window = 1 << (2 * self._kernel - 1).bit_length()
        self._activation, self._norm, self._dtype = activation, norm, dtype
        out, wide = convolution.out_channels, convolution.in_channels // groups
        spectrum = torch.fft.rfft(convolution.weight.detach().to(dtype), n=self._window).conj()
        # [out, in of the group, f] as [f · group, in of the group, out of the group].
        self._spectrum = spectrum.view(groups, out // groups, wide, -1).permute(3, 0, 2, 1).flatten(0, 1).contiguous()
        self._groups = groups
        self._bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Positions`."""
        windows, hop = [], self._window - self._kernel + 1
        before, counts = self._kernel // 2, [-(-length // hop) for length in lengths]
        source = frames if self._norm is None else _batch_norm(frames, self._norm)
        for part, count in zip(source.split(list(lengths)), counts, strict=True):
            padded = F.pad(part, (0, 0, before, count * hop + self._kernel - 1 - before - len(part)))
            windows.append(padded.as_strided((count, self._window, padded.shape[1]), (hop * padded.shape[1], *padded.stride())))
        if len(windows) == 1:
            found = torch.cat([self._convolve(part) for part in windows[0].split(MOST_WINDOWS)])
        else:
            found = self._convolve(torch.cat(windows))
        parts = found.split(counts)
        joined = torch.cat([part.flatten(0, 1)[:length] for part, length in zip(parts, lengths, strict=True)])
        return self._activation(joined if self._bias is None else joined.add_(self._bias))

    def _convolve(self, windows: Tensor) -> Tensor:
        """[windows, N, C] -> [windows, N − kernel + 1, C]."""
        count, _, C = windows.shape
        G, F_ = self._groups, self._window // 2 + 1
        spectrum = torch.fft.rfft(windows.to(self._dtype), dim=1).view(count, F_, G, C // G)
        product = torch.bmm(spectrum.permute(1, 2, 0, 3).reshape(F_ * G, count, C // G), self._spectrum)
        product = product.view(F_, G, count, C // G).permute(2, 0, 1, 3).reshape(count, F_, C)
        return torch.fft.irfft(product, n=self._window, dim=1)[:, : self._window - self._kernel + 1]


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
