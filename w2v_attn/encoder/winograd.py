"""A convolution of kernel 3 and stride 2 in five products for two frames instead of six.

It sees its input as two streams, the frames e_t at even and o_t at odd places: y_t = W₀ e_t + W₁ o_t + W₂ e_{t+1}. On
the even ones alone it is a convolution of kernel 2, of which Winograd's F(2, 2) computes two neighbours with three
products, for they share one:

    m_i      = (W₀ + W₂) e_{2i+1} + b
    y_{2i}   = W₀ (e_{2i} − e_{2i+1})   + W₁ o_{2i}   + m_i
    y_{2i+1} = W₂ (e_{2i+2} − e_{2i+1}) + W₁ o_{2i+1} + m_i

What comes out at even and at odd places is what the next convolution takes. In float32 the error is that of the plain
product; half precision would lose digits in the differences.

A product adds up its terms one after the other, torch's convolution in pieces: over 512 channels its float32 error is a
third. So each of the five products is over CHANNELS at most, and what they give is added up at the end.

Source: S. Winograd, Arithmetic Complexity of Computations, 1980.
"""

from dataclasses import dataclass

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


# With 512, 256 and 128 the frames of a base model are 2.7, 2.1 and 1.8 times as far from float64 as stock's; 128 cost a
# sixth more time. MKL adds up in pieces itself.
CHANNELS = 256


class FiveProducts:
    """weight: [out, in, 3], of stride 2. bias: [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._channels = weight.shape[1] if products.mkl_is_at_home(weight) else CHANNELS
        first, *others = weight.split(self._channels, 1)
        self._pieces = [_Piece(first, bias), *(_Piece(other, None) for other in others)]

    def __call__(self, frames: EvenOdd) -> EvenOdd:
        """T frames of `in` channels, at least 3 -> (T − 3) // 2 + 1 of `out`."""
        inputs = zip(frames.even.split(self._channels, 1), frames.odd.split(self._channels, 1), strict=True)
        even, odd = self._pieces[0](*next(inputs))
        for piece, (e, o) in zip(self._pieces[1:], inputs, strict=True):
            more_even, more_odd = piece(e, o)
            even, odd = even.add_(more_even), odd.add_(more_odd)
        return EvenOdd(even, odd)


class _Piece:
    """The five products over some of the channels."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        w_0, w_1, w_2 = weight.unbind(-1)
        self._shared = products.prepare_summand(w_0 + w_2, bias)
        self._zero, self._one, self._two = (products.prepare_summand(w, None) for w in (w_0, w_1, w_2))

    def __call__(self, e: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
        """Frames at even and at odd places -> y at even and at odd places."""
        count = (len(e) + len(o) - 3) // 2 + 1
        firsts, seconds = (count + 1) // 2, count // 2  # y_{2i} and y_{2i+1}
        between = e[1 : 2 * firsts : 2].contiguous()
        m = self._shared(between)
        second = self._two.plus(m[:seconds], e[2 : 2 * seconds + 1 : 2] - between[:seconds])
        first = self._zero.add_to(m, e[0 : 2 * firsts : 2] - between)
        return self._one.add_to(first, o[0 : 2 * firsts : 2]), self._one.add_to(second, o[1 : 2 * seconds : 2])
