"""A grouped convolution with a long kernel by Fourier transform (overlap-save), over packed recordings.

wav2vec 2.0's positional convolution is 128 frames long: the Fourier transform needs 39 times fewer operations than the
direct product.

Legend: K kernel, N window (a power of two), hop = N − K + 1, f a frequency of N, G groups; i and o input and output
channels of a group. x is a window of N frames that begins K // 2 frames before its first output. Hats are discrete
Fourier transforms over a window, the bar is the complex conjugate.

Forward
    (1)  yₒ[t] = Σᵢ Σₖ wₒᵢ[k] xᵢ[t + k]            as a circular correlation, valid for t < hop
         ŷₒ(f) = Σᵢ x̂ᵢ(f) ŵ̄ₒᵢ(f)                   one small product of channels for each frequency and group

Backward, with dy zero from hop on
    (1)  dx̂ᵢ(f) = Σₒ dŷₒ(f) ŵₒᵢ(f)                 windows overlap: their dx add up
         dŵₒᵢ(f) = Σ x̂ᵢ(f) dŷ̄ₒ(f) over windows     the first K taps of which are dw

Saved are X and W, not their transforms. On a CPU the groups are transformed in chunks, so that memory stays small.

Source: A. V. Oppenheim and R. W. Schafer, "Discrete-Time Signal Processing", section 8.7, overlap-save.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.ops.first_order import first_order_only

# Windows transformed at once: about 2000 frames, which fit the caches, and 66 000.
CPU_WINDOWS, ACCELERATOR_WINDOWS = 16, 512
# Channels transformed at once if gradients are needed, in whole groups; on accelerators all of them.
CPU_CHANNELS = 96


@dataclass(frozen=True)
class ConvolutionSizes:
    """The sizes of a convolution: taps, groups, and the window that it is computed in."""

    taps: int
    groups: int

    @property
    def window(self) -> int:
        """N: the smallest power of two that is at least twice the taps."""
        return 1 << (2 * self.taps - 1).bit_length()

    def with_groups(self, groups: int) -> "ConvolutionSizes":
        """Return the sizes of a convolution with only `groups` of the groups."""
        return ConvolutionSizes(self.taps, groups)

    @property
    def hop(self) -> int:
        """Output frames of one window."""
        return self.window - self.taps + 1


@dataclass(frozen=True)
class WindowSpan:
    """Frames `begin` to `end` of the recording from `first` to `last`, and the number of windows that cover them."""

    first: int
    last: int
    begin: int
    end: int
    num_windows: int


class FourierConvolution:
    """A grouped convolution of stride 1 with "same" padding, its activation, and an optional batch norm before it.

    Args:
        convolution: The convolution, whose weight and bias are used.
        activation: What is applied to its output.
        norm: Batch norm of its input, or None.
        dtype: Dtype of the computation, float32 or float64.
        trainable: Whether the weight may change or needs a gradient. It is then transformed at every call, else once.
    """

    def __init__(
        self,
        convolution: nn.Conv1d,
        activation: Any,
        norm: nn.BatchNorm1d | None,
        dtype: torch.dtype,
        *,
        trainable: bool,
    ):
        self._convolution, self._activation, self._norm, self._dtype = convolution, activation, norm, dtype
        self._kernel = ConvolutionSizes(convolution.kernel_size[0], convolution.groups)
        self._spectrum = None
        if not trainable:
            spectrum = weight_spectrum(convolution.weight.detach().to(dtype), self._kernel)
            self._spectrum = spectrum.conj().resolve_conj()

    @classmethod
    def of(
        cls, module: Any, dtype: torch.dtype, *, trainable: bool = False, removed: int | None = None
    ) -> "FourierConvolution | None":
        """Return the convolution of a Hugging Face positional embedding, or None if the module is of another kind.

        Args:
            module: The positional embedding.
            dtype: As for the class, like `trainable`.
            trainable: See `dtype`.
            removed: Frames that its forward cuts off at the end; None: as its module `padding` says.
        """
        convolution = getattr(module, "conv", None)
        if not isinstance(convolution, nn.Conv1d) or not hasattr(module, "activation"):
            return None
        taps = convolution.kernel_size[0]
        if removed is None:
            removed = getattr(getattr(module, "padding", None), "num_pad_remove", None)
        if removed != (taps + 1) % 2 or convolution.padding != (taps // 2,) or convolution.padding_mode != "zeros":
            return None
        if type(convolution).forward is not nn.Conv1d.forward:
            return None
        if convolution.stride != (1,) or convolution.dilation != (1,):
            return None
        return cls(convolution, module.activation, getattr(module, "batch_norm", None), dtype, trainable=trainable)

    def __call__(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the convolved packed frames [ΣT, C]; no recording affects another.

        On a CPU the temporary memory does not grow with ΣT; on an accelerator it holds one more copy of the frames.

        Args:
            frames: Packed frames [ΣT, C].
            lengths: Frames of each recording.
        """
        frames = frames.to(self._dtype)
        if self._norm is not None:
            frames = _batch_norm(frames, self._norm)
        if frames.device.type == "cpu" or len(lengths) == 1:
            return self._convolve(frames, lengths)
        # On an accelerator all recordings become one, with zeros in between, so that they share their launches.
        places = gapped_positions(lengths, self._kernel.taps // 2, frames.device)
        total = sum(lengths) + self._kernel.taps // 2 * (len(lengths) - 1)
        gapped = frames.new_zeros(total, frames.shape[1]).index_copy(0, places, frames)
        return self._convolve(gapped, [total]).index_select(0, places)

    def _convolve(self, frames: Tensor, lengths: Sequence[int]) -> Tensor:
        if self._spectrum is None:
            weight = self._convolution.weight.to(self._dtype)
            return self._finish(GroupedCorrelation.apply(frames, weight, tuple(lengths), self._kernel))
        y = torch.empty_like(frames)
        for spans in split_into_spans(lengths, self._kernel, frames.device):
            windows = gather_windows(frames, spans, self._kernel)
            scatter_windows(y, self._finish(correlate(windows, self._spectrum, self._kernel)), spans)
        return y

    def _finish(self, correlated: Any) -> Tensor:
        bias = self._convolution.bias
        return self._activation(correlated if bias is None else correlated + bias.to(self._dtype))


class GroupedCorrelation(torch.autograd.Function):
    """Autograd function of step (1): frames [ΣT, C], weight [C, C / G, K], lengths, sizes -> [ΣT, C].

    A CPU computes the groups in chunks that fit its caches; an accelerator computes all of them in one launch.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, weight: Tensor, lengths: tuple[int, ...], kernel: ConvolutionSizes) -> Tensor:
        ctx.save_for_backward(frames, weight)
        ctx.lengths, ctx.kernel = lengths, kernel
        y = torch.empty_like(frames)
        for here, some in _group_chunks(frames, kernel):
            spectrum = weight_spectrum(weight[here], some).conj().resolve_conj()
            for spans in split_into_spans(lengths, kernel, frames.device):
                windows = gather_windows(frames[:, here], spans, kernel)
                scatter_windows(y[:, here], correlate(windows, spectrum, some), spans)
        return y

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        frames, weight = ctx.saved_tensors
        kernel, needs_weight = ctx.kernel, ctx.needs_input_grad[1]
        dx, dw = torch.zeros_like(frames), torch.empty_like(weight) if needs_weight else None
        for here, some in _group_chunks(frames, kernel):
            spectrum = weight_spectrum(weight[here], some)
            dspectrum = torch.zeros_like(spectrum)
            for spans in split_into_spans(ctx.lengths, kernel, frames.device):
                gradients = _split_groups(_padded_gradients(dy[:, here], spans, kernel), some)  # dŷ
                back = _merge_groups(torch.bmm(gradients, spectrum.transpose(1, 2)), some)
                dwindows = torch.fft.irfft(back, n=kernel.window, dim=0).transpose(0, 1)
                scatter_add_windows(dx[:, here], dwindows, spans, kernel)
                if needs_weight:
                    windows = torch.fft.rfft(gather_windows(frames[:, here], spans, kernel)).permute(2, 0, 1)
                    windows = _split_groups(windows, some).transpose(1, 2)
                    dspectrum += torch.bmm(windows, gradients.conj().resolve_conj())
            if dw is not None:
                taps = torch.fft.irfft(dspectrum.unflatten(0, (-1, some.groups)), n=kernel.window, dim=0)[: kernel.taps]
                dw[here] = taps.permute(1, 3, 2, 0).flatten(0, 1)
        return dx, dw, None, None


def _group_chunks(frames: Tensor, kernel: ConvolutionSizes) -> Iterator[tuple[slice, ConvolutionSizes]]:
    """Yield each range of channels that is computed at once, and the sizes of its convolution."""
    width, at_once = frames.shape[1] // kernel.groups, kernel.groups
    if frames.device.type == "cpu":
        parts = (n for n in range(1, kernel.groups + 1) if kernel.groups % n == 0)
        at_once = max(n for n in parts if n == 1 or n * width <= CPU_CHANNELS)
    for begin in range(0, frames.shape[1], at_once * width):
        yield slice(begin, begin + at_once * width), kernel.with_groups(at_once)


def _split_groups(spectrum: Tensor, kernel: ConvolutionSizes) -> Tensor:
    """Split the channels into groups: [f, windows, C] -> [f · group, windows, channels of a group]."""
    return spectrum.unflatten(-1, (kernel.groups, -1)).transpose(1, 2).flatten(0, 1)


def _merge_groups(spectrum: Tensor, kernel: ConvolutionSizes) -> Tensor:
    """Concatenate the groups: [f · group, windows, channels of a group] -> [f, windows, C]."""
    return spectrum.unflatten(0, (-1, kernel.groups)).transpose(1, 2).flatten(2)


def weight_spectrum(weight: Tensor, kernel: ConvolutionSizes) -> Tensor:
    """Return ŵ [f · group, i, o] of the weight of a convolution, [C, C / G, K]."""
    spectrum = torch.fft.rfft(weight, n=kernel.window)
    out, wide, _ = spectrum.shape
    return spectrum.view(kernel.groups, out // kernel.groups, wide, -1).permute(3, 0, 2, 1).flatten(0, 1).contiguous()


def correlate(windows: Tensor, conjugate: Tensor, kernel: ConvolutionSizes) -> Tensor:
    """Return step (1) of each window: [windows, C, N] and ŵ̄ [f · group, i, o] -> [windows, hop, C]."""
    count, C, _ = windows.shape
    G, frequencies = kernel.groups, kernel.window // 2 + 1
    spectrum = torch.fft.rfft(windows).view(count, G, C // G, frequencies)
    product = torch.bmm(spectrum.permute(3, 1, 0, 2).reshape(frequencies * G, count, C // G), conjugate)
    product = product.view(frequencies, G, count, -1).permute(2, 0, 1, 3).reshape(count, frequencies, -1)
    return torch.fft.irfft(product, n=kernel.window, dim=1)[:, : kernel.hop]


def split_into_spans(
    lengths: Sequence[int], kernel: ConvolutionSizes, device: torch.device
) -> Iterator[list[WindowSpan]]:
    """Yield batches of spans that cover all frames, each with as many windows as the device transforms at once."""
    max_windows = CPU_WINDOWS if device.type == "cpu" else ACCELERATOR_WINDOWS
    batch: list[WindowSpan] = []
    first = room = 0
    for length in lengths:
        last = first + length
        for begin in range(first, last, max_windows * kernel.hop):
            end = min(begin + max_windows * kernel.hop, last)
            span = WindowSpan(first, last, begin, end, -(-(end - begin) // kernel.hop))
            if batch and span.num_windows > room:
                yield batch
                batch = []
            room = (room if batch else max_windows) - span.num_windows
            batch.append(span)
        first = last
    if batch:
        yield batch


def gapped_positions(lengths: Sequence[int], gap: int, device: torch.device) -> Tensor:
    """Return the positions of packed frames, int64 [ΣT], after `gap` frames are inserted between recordings."""
    total, counts = sum(lengths), torch.tensor(lengths, device=device)
    before = torch.arange(len(lengths), device=device).repeat_interleave(counts, output_size=total)
    return torch.arange(total, device=device) + gap * before


def gather_windows(frames: Tensor, spans: Sequence[WindowSpan], kernel: ConvolutionSizes) -> Tensor:
    """Return the overlapping windows of spans, [windows, C, N]; zeros before and after each recording."""
    windows = []
    for span in spans:
        begin = span.begin - kernel.taps // 2
        end = begin + (span.num_windows - 1) * kernel.hop + kernel.window
        inside = frames[max(begin, span.first) : min(end, span.last)]
        padded = F.pad(inside, (0, 0, max(span.first - begin, 0), max(end - span.last, 0)))
        windows.append(padded.unfold(0, kernel.window, kernel.hop))
    return torch.cat(windows)


def scatter_windows(frames: Tensor, convolved: Tensor, spans: Sequence[WindowSpan]) -> None:
    """Write the outputs of windows, [windows, hop, C], to the frames of their spans."""
    for span, part in zip(spans, convolved.split([span.num_windows for span in spans]), strict=True):
        frames[span.begin : span.end] = part.flatten(0, 1)[: span.end - span.begin]


def scatter_add_windows(frames: Tensor, windows: Tensor, spans: Sequence[WindowSpan], kernel: ConvolutionSizes) -> None:
    """Add windows [windows, N, C] to the frames that `gather_windows` read them from: its backward."""
    for span, part in zip(spans, windows.split([span.num_windows for span in spans]), strict=True):
        begin = span.begin - kernel.taps // 2
        added = overlap_add(part, kernel.hop)
        low, high = max(begin, span.first), min(begin + len(added), span.last)
        frames[low:high] += added[low - begin : high - begin]


def overlap_add(windows: Tensor, hop: int) -> Tensor:
    """Return the sum of windows [windows, N, C] that begin every `hop` frames, ⌈N / 2⌉ ≤ hop: [(windows + 1) · hop, C].

    Windows of even numbers do not overlap each other, nor do those of odd numbers: each set is one concatenation.
    """
    count, N, C = windows.shape
    total = windows.new_zeros((count + 1) * hop, C)
    for first in (0, 1):
        others = F.pad(windows[first::2], (0, 0, 0, 2 * hop - N)).flatten(0, 1)
        total[first * hop : first * hop + len(others)] += others
    return total


def _padded_gradients(dy: Tensor, spans: Sequence[WindowSpan], kernel: ConvolutionSizes) -> Tensor:
    """Return dŷ of each window, [f, windows, C], of dy padded with zeros from hop on."""
    parts = []
    for span in spans:
        count = span.num_windows * kernel.hop
        padded = F.pad(dy[span.begin : span.end], (0, 0, 0, count - (span.end - span.begin)))
        parts.append(padded.view(span.num_windows, kernel.hop, -1))
    return torch.fft.rfft(torch.cat(parts), n=kernel.window, dim=1).transpose(0, 1).contiguous()


def _batch_norm(frames: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Return the frames [ΣT, C] normalised by the running statistics of `norm`."""
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (None if part is None else part.to(frames.dtype) for part in parts)
    return F.batch_norm(frames, mean, variance, weight, bias, False, 0.0, norm.eps)
