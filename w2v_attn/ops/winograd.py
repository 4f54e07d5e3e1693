"""A convolution of kernel 3 and stride 2 with seven matrix products for three frames instead of nine (Winograd).

The input is split into its even frames e_t and odd frames o_t: y_t = W₀ e_t + W₁ o_t + W₂ e_{t+1}. On the even frames
alone it is a convolution of kernel 2, of which Winograd's F(3, 2) computes three neighbours with four products, because
they share two:

    a_i = (W₀ + W₂)/2 (e_{3i+1} + e_{3i+2}) + b
    d_i = (W₀ − W₂)/2 (e_{3i+1} − e_{3i+2})

    y_{3i}   = a_i − d_i + W₀ (e_{3i} − e_{3i+2})   + W₁ o_{3i}
    y_{3i+1} = a_i + d_i                            + W₁ o_{3i+1}
    y_{3i+2} = a_i − d_i + W₂ (e_{3i+3} − e_{3i+1}) + W₁ o_{3i+2}

In float32 the error equals that of the plain product; half precision would lose digits in the differences.

A matrix product sums its terms sequentially, torch's convolution in blocks: over 512 channels its float32 error is a
third. So each product sums over MAX_CHANNELS at most, and the partial results are added at the end.

Source: S. Winograd, Arithmetic Complexity of Computations, 1980.
"""

import torch
from torch import Tensor

from w2v_attn.ops import gemm

# With 512, 256 and 128 the frames of a base model are 2.6, 2.1 and 1.7 times as far from float64 as stock's; 128 cost a
# sixth more time. MKL itself sums in blocks: 2.0.
MAX_CHANNELS = 256


class Winograd:
    """A convolution of kernel 3 and stride 2 by Winograd's algorithm.

    Args:
        weight: [out, in, 3].
        bias: [out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._channels = weight.shape[1] if gemm.prefers_mkl(weight) else MAX_CHANNELS
        first, *others = weight.split(self._channels, 1)
        self._chunks = [_ChannelChunk(first, bias), *(_ChannelChunk(other, None) for other in others)]

    @staticmethod
    def frames_needed(count: int) -> int:
        """Return how many input frames give at least `count` output frames."""
        return 6 * -(-count // 3) + 1

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the output frames [3 n, out] of input frames [T, in], T ≥ 7, for n = (T − 1) // 6."""
        first, *others = frames.split(self._channels, 1)
        y = self._chunks[0](first)
        for chunk, x in zip(self._chunks[1:], others, strict=True):
            y.add_(chunk(x))
        return y


class _ChannelChunk:
    """The seven products over some of the input channels."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        w_0, w_1, w_2 = weight.unbind(-1)
        self._sums = gemm.prepare_accumulating((w_0 + w_2) / 2, bias)
        self._differences = gemm.prepare_accumulating((w_0 - w_2) / 2, None)
        self._zero, self._one, self._two = (gemm.prepare_accumulating(w, None) for w in (w_0, w_1, w_2))

    def __call__(self, x: Tensor) -> Tensor:
        threes = (len(x) - 1) // 6
        e_0, e_1, e_2, e_3 = (x[begin : begin + 6 * threes - 5 : 6] for begin in (0, 2, 4, 6))
        a, d = self._sums(e_1 + e_2), self._differences(e_1 - e_2)
        y = a.new_empty(threes, 3, a.shape[1])
        y_0, y_1, y_2 = y.unbind(1)
        torch.add(a, d, out=y_1)
        y_2.copy_(torch.sub(a, d, out=y_0))
        self._zero.add_to(y_0, e_0 - e_2)
        self._two.add_to(y_2, e_3 - e_1)
        return self._one.add_to(y.flatten(0, 1), x[1 : 6 * threes : 2])
