"""Matrix products on plain tensors: oneDNN's where this torch has them, torch's own elsewhere.

On a CPU torch hands float32 products to MKL, which leaves half of some processors' width unused: on those of another
maker than its own. oneDNN, which comes with torch too, does not, and it adds a bias and a GELU while a result is still
in a register. Its products take their right side as a weight: [N, K], one row for each column of the result, in any
layout. A weight that serves many times can be packed once into the layout that oneDNN computes with; see `Packed`.

Where MKL is at home it is up to twice as fast as oneDNN, which packs a weight at every call if it is not packed; with
packed ones both are alike. MKL also adds results to what is there as it stores them; see `Summand`.

Nothing here is differentiable: these are the steps of a forward or of a derived backward. Whether oneDNN can be used is
found out at the first product, by computing one both ways.
"""

import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.ops import flops

NO_EPILOGUE, GELU = "none", "gelu"
# A call of oneDNN takes some 20 µs before it begins: products of fewer multiplications than this are over by then.
MIN_WORK = 1 << 21

flops.register()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x Wᵀ + b, [..., N], and GELU of that where asked for.

    x: [..., K]. weight: [N, K], of any strides. bias: [N].
    """
    if x.numel() * len(weight) >= MIN_WORK and weight.dtype == x.dtype and serves(x):
        return _onednn(x, _dense(weight), bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """y + x Wᵀ, [M, N], in the memory of y, whose rows may be any distance from each other. x: [M, K]."""
    return y.add_(linear(x, weight)) if serves(x) else y.addmm_(x, weight.T)


def times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ for each of a batch, [G, M, N]. a: [G, M, K], b: [G, N, K], of any strides."""
    if a.shape[1] * a.shape[2] * b.shape[1] < MIN_WORK or not serves(a):
        return torch.bmm(a, b.transpose(1, 2))
    if len(a) == 1:
        return linear(a[0], b[0])[None]
    return torch.stack([linear(left, right) for left, right in zip(a, b, strict=True)])


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b for each of a batch, [G, M, N]. a: [G, M, K], b: [G, K, N], of any strides."""
    return times_transposed(a, b.transpose(1, 2))


def transposed_times(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b for each of a batch, [G, M, N]. a: [G, K, M], b: [G, K, N]; as (bᵀ a)ᵀ, for a is the large one."""
    return times_transposed(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)


def heads_times_transposed(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """x_h W_hᵀ + b for every head h, side by side: [I, H·N].

    x: [I, H·K]. weights: [H, N, K] contiguous, N and K multiples of 16. bias: [H·N]. Only where it `serves_heads`.

    One call for all heads, as a convolution of kernel 1 with a group for each: for short recordings the calls, one for
    each head, would cost as much as the products.
    """
    H, N, K = weights.shape
    pixels = x.view(1, 1, len(x), H * K).permute(0, 3, 1, 2)
    kernels = weights.view(H * N, K, 1, 1)
    found = torch.ops.mkldnn._convolution_pointwise(
        pixels, kernels, bias, [0, 0], [1, 1], [1, 1], H, NO_EPILOGUE, [], ""
    )  # fmt: skip
    return found.permute(0, 2, 3, 1).reshape(len(x), H * N)


def serves(x: Tensor) -> bool:
    """Whether oneDNN computes products of tensors like `x` here, they are right, and MKL is not faster at them."""
    return _packs(x) and not prefers_mkl(x)


def prefers_mkl(x: Tensor) -> bool:
    """Whether MKL computes products of tensors like `x` at this processor's full width: it is of MKL's maker."""
    return x.device.type == "cpu" and x.dtype is torch.float32 and _is_made_by_intel()


def _packs(x: Tensor) -> bool:
    """Whether oneDNN computes products of tensors like `x` here, and they are right."""
    return x.device.type == "cpu" and x.numel() > 0 and _is_right(x.dtype)


@cache
def _is_made_by_intel() -> bool:
    # On Windows "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel"; on Linux it would ask another program.
    known = Path("/proc/cpuinfo")
    described = known.read_text(encoding="utf-8", errors="replace") if known.exists() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in described


class Packed:
    """A linear map whose weight lies in memory as oneDNN computes with it: made once, applied many times.

    weight: [N, K]; bias: [N] or None. What is kept is a copy: whoever packs a parameter watches it for changes.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach().clone()

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[..., K] -> [..., N], see `linear`."""
        return _onednn(x, self._weight, self._bias, gelu)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """y + x Wᵀ + b, in the memory of y."""
        return y.add_(self(x))


class Plain:
    """The same as `Packed` where there is nothing to pack."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """[..., K] -> [..., N], see `linear`."""
        return linear(x, self._weight, self._bias, gelu=gelu)

    def rows(self, chosen: slice) -> "Plain":
        """The map to these of the N outputs, with the same memory for its weight."""
        return Plain(self._weight[chosen], None if self._bias is None else self._bias[chosen])


class Summand:
    """A linear map whose results are added to others: by torch's own product, which adds while it stores.

    weight: [N, K]; bias: [N] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._transposed = weight.detach().contiguous().T
        self._bias = None if bias is None else bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        """x Wᵀ + b. x: [M, K], of any distance between its rows."""
        return x @ self._transposed if self._bias is None else torch.addmm(self._bias, x, self._transposed)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """y + x Wᵀ, in the memory of y, whose rows may be any distance from each other."""
        return y.addmm_(x, self._transposed)


def prepare(weight: Tensor, bias: Tensor | None) -> Packed | Plain:
    """A linear map that will be applied many times."""
    return Packed(weight, bias) if _packs(weight) else Plain(weight, bias)


def prepare_summand(weight: Tensor, bias: Tensor | None) -> Packed | Summand:
    """One whose results will be added to others."""
    return Packed(weight, bias) if serves(weight) else Summand(weight, bias)


@cache
def serves_heads(dtype: torch.dtype) -> bool:
    """Whether `heads_times_transposed` is there for this dtype and right."""
    if not _is_right(dtype) or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((37, 96), (3, 64, 32), (192,))
    x, weights, bias = (torch.randn(size, generator=generator, device="cpu").to(dtype) for size in sizes)
    try:
        with torch.no_grad():
            ours = heads_times_transposed(x, weights, bias)
    except (RuntimeError, TypeError):
        return False
    theirs = torch.einsum("ihk,hnk->ihn", x.double().view(37, 3, 32), weights.double()).flatten(1) + bias.double()
    return bool((ours.double() - theirs).abs().max() < (1e-4 if dtype is torch.float32 else 0.2))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    # oneDNN reads a bias as if it had no gaps, and an expanded one beyond its end.
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, GELU if gelu else NO_EPILOGUE, [], "none")


def _dense(weight: Tensor) -> Tensor:
    """Rows or columns without gaps between them: from others oneDNN computes a thousand times slower."""
    dense = weight.is_contiguous() or weight.T.is_contiguous()
    return weight if dense else weight.contiguous()


@cache
def _is_right(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products are there for this dtype and equal torch's, packed and not, with GELU and without."""
    operators = torch.ops.mkldnn
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    if dtype is torch.bfloat16 and not operators._is_mkldnn_bf16_supported():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((37, 96), (64, 96), (64,))
    x, weight, bias = (torch.randn(size, generator=generator, device="cpu").to(dtype) for size in sizes)
    try:
        with torch.no_grad():
            plain = F.linear(x.double(), weight.double(), bias.double())
            found: Sequence[tuple[Tensor, Tensor]] = [
                (Packed(weight, bias)(x), plain),
                (Packed(weight, bias)(x, gelu=True), F.gelu(plain)),
                (_onednn(x, weight, bias, False), plain),
                (_onednn(x, weight.T.contiguous().T, bias, True), F.gelu(plain)),
            ]
    except (RuntimeError, TypeError):
        return False
    # Sums of 96 products of standard normals: about 10, so some hundred roundings of float32, or one of bfloat16.
    bound = 1e-4 if dtype is torch.float32 else 0.2
    return all(bool((ours.double() - theirs).abs().max() < bound) for ours, theirs in found)
