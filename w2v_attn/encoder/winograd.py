"""A convolution of kernel 3 and stride 2 in five products for two frames instead of six.

It sees its input as two streams, the frames e_t at even and o_t at odd places: y_t = W₀ e_t + W₁ o_t + W₂ e_{t+1}. On
the even ones alone it is a convolution of kernel 2, of which Winograd's F(2, 2) computes two neighbours with three
products, for they share one:

    m_i      = (W₀ + W₂) e_{2i+1} + b
    y_{2i}   = W₀ (e_{2i} − e_{2i+1})   + W₁ o_{2i}   + m_i
    y_{2i+1} = W₂ (e_{2i+2} − e_{2i+1}) + W₁ o_{2i+1} + m_i

What comes out at even and at odd places is what the next convolution takes. In float32 the error is that of the plain
product; half precision would lose digits in the differences.

Source: S. Winograd, Arithmetic Complexity of Computations, 1980.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.attention import products


@dataclass(frozen=True)
class EvenOdd:
    """Frames at even and at odd places, [⌈T/2⌉, C] and [⌊T/2⌋, C]."""

    even: Tensor
    odd: Tensor

    def joined(self) -> Tensor:
        """All frames in order, [T, C]."""
        found = self.even.new_empty(len(self.even) + len(self.odd), self.even.shape[1])
        found[0::2], found[1::2] = self.even, self.odd
        return found


class FiveProducts:
    """weight: [out, in, 3], of stride 2. bias: [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        w_0, w_1, w_2 = weight.unbind(-1)
        self._shared = products.prepare(w_0 + w_2, bias)
        self._first = products.prepare(torch.cat([w_0, w_1], 1), None)
        self._second = products.prepare(torch.cat([w_2, w_1], 1), None)

    def __call__(self, frames: EvenOdd) -> EvenOdd:
        """T frames of `in` channels, at least 3 -> (T − 3) // 2 + 1 of `out`."""
        e, o = frames.even, frames.odd
        count = (len(e) + len(o) - 3) // 2 + 1
        firsts, seconds = (count + 1) // 2, count // 2  # y_{2i} and y_{2i+1}
        between = e[1 : 2 * firsts : 2]
        m = self._shared(between)
        first = _side_by_side(e[0 : 2 * firsts : 2], between, o[0 : 2 * firsts : 2])
        second = _side_by_side(e[2 : 2 * seconds + 1 : 2], between[:seconds], o[1 : 2 * seconds : 2])
        return EvenOdd(self._first.plus(m, first), self._second.plus(m[:seconds], second))


def _side_by_side(e: Tensor, between: Tensor, o: Tensor) -> Tensor:
    """e − between and o in one row each: [N, 2 · in]."""
    N, C = e.shape
    found = e.new_empty(N, 2 * C)
    torch.sub(e, between, out=found[:, :C])
    found[:, C:] = o
    return found
