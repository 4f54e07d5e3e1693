"""A grouped convolution with a long kernel by Fourier transform, for each of the recordings that lie side by side.

wav2vec 2.0's positional convolution, 128 frames long, is the one place where a direct product is a waste: by Fourier
transform it takes 39 times fewer operations.

Legend: K kernel, N window (a power of two), hop = N − K + 1, f a frequency of N, G groups; i and o channels of a group
that go in and come out. x is a window of N frames, beginning K // 2 frames before the first it gives. Hats are discrete
Fourier transforms over a window, the bar is the complex conjugate.

Forward
    (1)  yₒ[t] = Σᵢ Σₖ wₒᵢ[k] xᵢ[t + k]            as a circular correlation, right for t < hop
         ŷₒ(f) = Σᵢ x̂ᵢ(f) ŵ̄ₒᵢ(f)                   one small product of channels for each frequency and group

Backward, with dy zero from hop on
    (1)  dx̂ᵢ(f) = Σₒ dŷₒ(f) ŵₒᵢ(f)                 windows overlap: their dx add up
         dŵₒᵢ(f) = Σ x̂ᵢ(f) dŷ̄ₒ(f) over windows     of which the first K taps are dw

X and W are kept, not their transforms. On a CPU some groups at a time are transformed, so that memory stays small.

Source: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", section 8.7, overlap-save.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.ops.first_order import first_order_only

# Windows transformed at once: about 2000 frames, which stay near the caches, and 66 000.
CPU_WINDOWS, ACCELERATOR_WINDOWS = 16, 512
# Channels transformed at once where gradients are wanted, in whole groups; on accelerators all of them.
CPU_CHANNELS = 96


@dataclass(frozen=True)
class Kernel:
    """The sizes of a convolution: taps, groups, and the window it is computed in."""

    taps: int
    groups: int

    @property
    def window(self) -> int:
        """N: the least power of two that is at least twice as long."""
        return 1 << (2 * self.taps - 1).bit_length()

    def some(self, groups: int) -> "Kernel":
        """That of so many of the groups."""
        return Kernel(self.taps, groups)

    @property
    def hop(self) -> int:
        """Frames that a window gives."""
        return self.window - self.taps + 1


@dataclass(frozen=True)
class Piece:
    """Frames `begin` to `end` of a recording that lies from `first` to `last`, in so many windows."""

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
        self._convolution, self._activation, self._norm, self._dtype = convolution, activation, norm, dtype
        self._kernel = Kernel(convolution.kernel_size[0], convolution.groups)
        self._spectrum = (
            None if live else spectrum_of(convolution.weight.detach().to(dtype), self._kernel).conj().resolve_conj()
        )

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype, *, live: bool = False) -> "FourierConvolution | None":
        """That of a Hugging Face positional embedding; None where it is another kind."""
        convolution = getattr(module, "conv", None)
        if not isinstance(convolution, nn.Conv1d) or not hasattr(module, "activation"):
            return None
        taps = convolution.kernel_size[0]
        removed = getattr(getattr(module, "padding", None), "num_pad_remove", None)
        if removed != (taps + 1) % 2 or convolution.padding != (taps // 2,) or convolution.padding_mode != "zeros":
            return None
        if type(convolution).forward is not nn.Conv1d.forward:
            return None
        if convolution.stride != (1,) or convolution.dilation != (1,):
            return None
        return cls(convolution, module.activation, getattr(module, "batch_norm", None), dtype, live=live)

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """[ΣT, C] of recordings of `lengths` frames -> [ΣT, C].

        On a CPU memory beside the result does not grow with it; on an accelerator there is another copy of the frames.
        """
        frames = frames.to(self._dtype)
        if self._norm is not None:
            frames = _batch_norm(frames, self._norm)
        if frames.device.type == "cpu" or len(lengths) == 1:
            return self._convolve(frames, lengths)
        # On an accelerator as one recording, with zeros between: no launch is for one of them alone.
        places = spread(lengths, self._kernel.taps // 2, frames.device)
        total = sum(lengths) + self._kernel.taps // 2 * (len(lengths) - 1)
        apart = frames.new_zeros(total, frames.shape[1]).index_copy(0, places, frames)
        return self._convolve(apart, [total]).index_select(0, places)

    def _convolve(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        if self._spectrum is None:
            weight = self._convolution.weight.to(self._dtype)
            return self._finish(GroupedCorrelation.apply(frames, weight, tuple(lengths), self._kernel))
        found = torch.empty_like(frames)
        for pieces in pieces_of(lengths, self._kernel, frames.device):
            windows = windows_of(frames, pieces, self._kernel)
            write_back(found, self._finish(correlate(windows, self._spectrum, self._kernel)), pieces)
        return found

    def _finish(self, correlated: Any) -> Tensor:
        bias = self._convolution.bias
        return self._activation(correlated if bias is None else correlated + bias.to(self._dtype))


class GroupedCorrelation(torch.autograd.Function):
    """frames [ΣT, C] and weight [C, C / G, K] -> [ΣT, C], step (1).

    Some groups at a time on a CPU, for its caches; all at once on accelerators, for the launches.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, weight: Tensor, lengths: tuple[int, ...], kernel: Kernel) -> Tensor:
        ctx.save_for_backward(frames, weight)
        ctx.lengths, ctx.kernel = lengths, kernel
        found = torch.empty_like(frames)
        for here, some in _groups_of(frames, kernel):
            spectrum = spectrum_of(weight[here], some).conj().resolve_conj()
            for pieces in pieces_of(lengths, kernel, frames.device):
                windows = windows_of(frames[:, here], pieces, kernel)
                write_back(found[:, here], correlate(windows, spectrum, some), pieces)
        return found

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        frames, weight = ctx.saved_tensors
        kernel, needs_weight = ctx.kernel, ctx.needs_input_grad[1]
        dx, dw = torch.zeros_like(frames), torch.empty_like(weight) if needs_weight else None
        for here, some in _groups_of(frames, kernel):
            spectrum = spectrum_of(weight[here], some)
            dspectrum = torch.zeros_like(spectrum)
            for pieces in pieces_of(ctx.lengths, kernel, frames.device):
                gradients = _by_group(_padded_gradients(dy[:, here], pieces, kernel), some)  # dŷ
                back = _side_by_side(torch.bmm(gradients, spectrum.transpose(1, 2)), some)
                add_back(dx[:, here], torch.fft.irfft(back, n=kernel.window, dim=0).transpose(0, 1), pieces, kernel)
                if needs_weight:
                    windows = torch.fft.rfft(windows_of(frames[:, here], pieces, kernel)).permute(2, 0, 1)
                    dspectrum += torch.bmm(_by_group(windows, some).transpose(1, 2), gradients.conj().resolve_conj())
            if dw is not None:
                taps = torch.fft.irfft(dspectrum.unflatten(0, (-1, some.groups)), n=kernel.window, dim=0)[: kernel.taps]
                dw[here] = taps.permute(1, 3, 2, 0).flatten(0, 1)
        return dx, dw, None, None


def _groups_of(frames: Tensor, kernel: Kernel) -> Iterator[tuple[slice, Kernel]]:
    """Channels that are computed together, and the kernel that they have."""
    width, at_once = frames.shape[1] // kernel.groups, kernel.groups
    if frames.device.type == "cpu":
        parts = (n for n in range(1, kernel.groups + 1) if kernel.groups % n == 0)
        at_once = max(n for n in parts if n == 1 or n * width <= CPU_CHANNELS)
    for begin in range(0, frames.shape[1], at_once * width):
        yield slice(begin, begin + at_once * width), kernel.some(at_once)


def _by_group(spectrum: Tensor, kernel: Kernel) -> Tensor:
    """[f, windows, C] -> [f · group, windows, channels of one]."""
    return spectrum.unflatten(-1, (kernel.groups, -1)).transpose(1, 2).flatten(0, 1)


def _side_by_side(spectrum: Tensor, kernel: Kernel) -> Tensor:
    """[f · group, windows, channels of one] -> [f, windows, C]."""
    return spectrum.unflatten(0, (-1, kernel.groups)).transpose(1, 2).flatten(2)


def spectrum_of(weight: Tensor, kernel: Kernel) -> Tensor:
    """ŵ as [f · group, i, o], from the weight of a convolution, [C, C / G, K]."""
    spectrum = torch.fft.rfft(weight, n=kernel.window)
    out, wide, _ = spectrum.shape
    return spectrum.view(kernel.groups, out // kernel.groups, wide, -1).permute(3, 0, 2, 1).flatten(0, 1).contiguous()


def correlate(windows: Tensor, conjugate: Tensor, kernel: Kernel) -> Tensor:
    """Step (1): [windows, C, N] and ŵ̄ [f · group, i, o] -> [windows, hop, C]."""
    count, C, _ = windows.shape
    G, frequencies = kernel.groups, kernel.window // 2 + 1
    spectrum = torch.fft.rfft(windows).view(count, G, C // G, frequencies)
    product = torch.bmm(spectrum.permute(3, 1, 0, 2).reshape(frequencies * G, count, C // G), conjugate)
    product = product.view(frequencies, G, count, -1).permute(2, 0, 1, 3).reshape(count, frequencies, -1)
    return torch.fft.irfft(product, n=kernel.window, dim=1)[:, : kernel.hop]


def pieces_of(lengths: Sequence[int], kernel: Kernel, device: torch.device) -> Iterator[list[Piece]]:
    """All frames in pieces of one recording each, as many at once as the device takes windows."""
    most = CPU_WINDOWS if device.type == "cpu" else ACCELERATOR_WINDOWS
    batch: list[Piece] = []
    first = room = 0
    for length in lengths:
        last = first + length
        for begin in range(first, last, most * kernel.hop):
            end = min(begin + most * kernel.hop, last)
            piece = Piece(first, last, begin, end, -(-(end - begin) // kernel.hop))
            if batch and piece.num_windows > room:
                yield batch
                batch = []
            room = (room if batch else most) - piece.num_windows
            batch.append(piece)
        first = last
    if batch:
        yield batch


def spread(lengths: Sequence[int], gap: int, device: torch.device) -> Tensor:
    """int64 [ΣT]: where the frames of recordings stand with a gap between neighbours."""
    total, counts = sum(lengths), torch.tensor(lengths, device=device)
    before = torch.arange(len(lengths), device=device).repeat_interleave(counts, output_size=total)
    return torch.arange(total, device=device) + gap * before


def windows_of(frames: Tensor, pieces: Sequence[Piece], kernel: Kernel) -> Tensor:
    """[windows, C, N] that overlap; zeros before and after each recording."""
    found = []
    for piece in pieces:
        begin = piece.begin - kernel.taps // 2
        end = begin + (piece.num_windows - 1) * kernel.hop + kernel.window
        inside = frames[max(begin, piece.first) : min(end, piece.last)]
        padded = F.pad(inside, (0, 0, max(piece.first - begin, 0), max(end - piece.last, 0)))
        found.append(padded.unfold(0, kernel.window, kernel.hop))
    return torch.cat(found)


def write_back(frames: Tensor, convolved: Tensor, pieces: Sequence[Piece]) -> None:
    """What windows gave, [windows, hop, C], into the frames of their pieces."""
    for piece, part in zip(pieces, convolved.split([piece.num_windows for piece in pieces]), strict=True):
        frames[piece.begin : piece.end] = part.flatten(0, 1)[: piece.end - piece.begin]


def add_back(frames: Tensor, windows: Tensor, pieces: Sequence[Piece], kernel: Kernel) -> None:
    """Undoes `windows_of`: adds [windows, N, C] to the frames that they were taken from."""
    for piece, part in zip(pieces, windows.split([piece.num_windows for piece in pieces]), strict=True):
        begin = piece.begin - kernel.taps // 2
        added = overlap_add(part, kernel.hop)
        low, high = max(begin, piece.first), min(begin + len(added), piece.last)
        frames[low:high] += added[low - begin : high - begin]


def overlap_add(windows: Tensor, hop: int) -> Tensor:
    """The sum of [windows, N, C] that begin every `hop` frames, ⌈N / 2⌉ ≤ hop: [(windows + 1) · hop, C].

    Every other window does not meet the next, so they lie side by side, and the others beside them a hop later.
    """
    count, N, C = windows.shape
    total = windows.new_zeros((count + 1) * hop, C)
    for first in (0, 1):
        others = F.pad(windows[first::2], (0, 0, 0, 2 * hop - N)).flatten(0, 1)
        total[first * hop : first * hop + len(others)] += others
    return total


def _padded_gradients(dy: Tensor, pieces: Sequence[Piece], kernel: Kernel) -> Tensor:
    """dŷ of each window, zero from hop on: [f, windows, C]."""
    parts = []
    for piece in pieces:
        count = piece.num_windows * kernel.hop
        padded = F.pad(dy[piece.begin : piece.end], (0, 0, 0, count - (piece.end - piece.begin)))
        parts.append(padded.view(piece.num_windows, kernel.hop, -1))
    return torch.fft.rfft(torch.cat(parts), n=kernel.window, dim=1).transpose(0, 1).contiguous()


def _batch_norm(frames: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """[ΣT, C] by the statistics that the norm has learned."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (None if part is None else part.to(frames.dtype) for part in parts)
    return F.batch_norm(frames, mean, variance, weight, bias, False, 0.0, norm.eps)
