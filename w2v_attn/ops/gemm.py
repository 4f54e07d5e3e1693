"""Matrix products on CPU and GPU tensors: oneDNN's if this torch has them and they are faster, else torch's own.

On a CPU torch calls MKL for float32 products, and MKL uses only half of the vector width of processors that are not
Intel's. oneDNN, which torch also bundles, uses the full width, and it adds a bias and applies a GELU while a result is
still in a register. oneDNN's products take their right side as a weight: [N, K], one row for each column of the result,
in any layout. A weight that is applied many times can be packed once into oneDNN's own layout; see `PrepackedLinear`.

On Intel processors MKL is up to twice as fast as oneDNN with a weight that is packed at every call, and equally fast as
oneDNN with a prepacked weight. MKL can also accumulate into its output; see `AccumulatingLinear`.

Processors without instructions for bfloat16 or float16 compute such products five to ten times slower than in float32.
There both sides are widened to float32, the weight in tiles, and only the result is rounded.

Nothing here is differentiable: these are the steps of a forward or of a derived backward. The first product is computed
both ways to find out whether oneDNN can be used. Names follow BLAS: `nt` multiplies by the transpose of the right side,
`tn` multiplies the transpose of the left side.
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
# Elements of a weight that are widened at once: 8 MB in float32.
WIDENED_TILE = 1 << 21
# A call of oneDNN has an overhead of about 20 µs: smaller products than this (in multiplications) finish earlier.
MIN_WORK = 1 << 21

flops.register_flop_formulas()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Return x Wᵀ + b, [..., N], or its GELU.

    Args:
        x: [..., K].
        weight: [N, K], any strides.
        bias: [N] or None.
        gelu: Whether to apply the exact GELU.
    """
    if x.numel() * len(weight) >= MIN_WORK and weight.dtype == x.dtype:
        if prefers_onednn(x):
            return _onednn(x, _dense(weight), bias, gelu)
        if _must_widen(x):
            return _widened(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def add_linear(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x Wᵀ to y [M, N] in place and return y; y may have any row stride. x: [M, K], weight: [N, K]."""
    return y.add_(linear(x, weight)) if prefers_onednn(x) else y.addmm_(x, weight.T)


def bmm_nt(a: Tensor, b: Tensor) -> Tensor:
    """Return the batched product a bᵀ, [G, M, N]. a: [G, M, K], b: [G, N, K], any strides."""
    if a.shape[1] * a.shape[2] * b.shape[1] < MIN_WORK or not prefers_onednn(a):
        if _must_widen(a) and a.dtype == b.dtype:
            return torch.bmm(a.float(), b.float().transpose(1, 2)).to(a.dtype)
        return torch.bmm(a, b.transpose(1, 2))
    if len(a) == 1:
        return linear(a[0], b[0])[None]
    return torch.stack([linear(left, right) for left, right in zip(a, b, strict=True)])


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Return the batched product a b, [G, M, N]. a: [G, M, K], b: [G, K, N], any strides."""
    return bmm_nt(a, b.transpose(1, 2))


def bmm_tn(a: Tensor, b: Tensor) -> Tensor:
    """Return the batched product aᵀ b, [G, M, N], as (bᵀ a)ᵀ because a is the larger. a: [G, K, M], b: [G, K, N]."""
    return bmm_nt(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)


def heads_matmul_nt(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x_h W_hᵀ + b_h of every head h, concatenated: [I, H·N].

    This is one call for all heads, a convolution of kernel 1 with one group per head: for short recordings the overhead
    of one call per head would be as long as the products. Requires `is_heads_matmul_supported`.

    Args:
        x: [I, H·K].
        weights: [H, N, K], contiguous; N and K are multiples of 16.
        bias: [H·N] or None.
    """
    H, N, K = weights.shape
    pixels = x.view(1, 1, len(x), H * K).permute(0, 3, 1, 2)
    kernels = weights.view(H * N, K, 1, 1)
    found = torch.ops.mkldnn._convolution_pointwise(
        pixels, kernels, bias, [0, 0], [1, 1], [1, 1], H, NO_EPILOGUE, [], ""
    )  # fmt: skip
    return found.permute(0, 2, 3, 1).reshape(len(x), H * N)


def prefers_onednn(x: Tensor) -> bool:
    """Return whether oneDNN supports products of tensors like `x` here, computes them right, and is faster than MKL."""
    return _has_onednn(x) and not prefers_mkl(x)


def prefers_mkl(x: Tensor) -> bool:
    """Return whether MKL uses the full vector width for products of tensors like `x`: on Intel processors."""
    return x.device.type == "cpu" and x.dtype is torch.float32 and _is_made_by_intel()


def _has_onednn(x: Tensor) -> bool:
    """Return whether oneDNN supports products of tensors like `x` here and computes them right."""
    return x.device.type == "cpu" and x.numel() > 0 and _is_right(x.dtype)


def _must_widen(x: Tensor) -> bool:
    """Return whether this processor has no instructions for products in the dtype of x."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and not _has_instructions(x.dtype)


@cache
def _has_instructions(dtype: torch.dtype) -> bool:
    name = "_is_mkldnn_bf16_supported" if dtype is torch.bfloat16 else "_is_mkldnn_fp16_supported"
    is_supported = getattr(torch.ops.mkldnn, name, None)
    return is_supported is not None and is_supported()


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """Return what `linear` returns, computed in float32 and rounded once."""
    y, wide = x.new_empty(*x.shape[:-1], len(weight)), x.float()
    for first in range(0, len(weight), rows := max(1, WIDENED_TILE // weight.shape[1])):
        tile = slice(first, first + rows)
        y[..., tile] = linear(wide, weight[tile].float(), None if bias is None else bias[tile].float(), gelu=gelu)
    return y


@cache
def _is_made_by_intel() -> bool:
    # On Windows "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel"; on Linux `platform` would start another program.
    known = Path("/proc/cpuinfo")
    described = known.read_text(encoding="utf-8", errors="replace") if known.exists() else platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in described


class PrepackedLinear:
    """A linear map whose weight is packed once into oneDNN's own layout.

    It keeps a copy of the weight: a caller that packs a parameter must watch it for changes.

    Args:
        weight: [N, K].
        bias: [N] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach().clone()

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Return x Wᵀ + b, or its GELU: [..., K] -> [..., N]; see `linear`."""
        return _onednn(x, self._weight, self._bias, gelu)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Add x Wᵀ + b to y in place and return y."""
        return y.add_(self(x))


class PlainLinear:
    """A linear map with the interface of `PrepackedLinear` and an ordinary weight, which is not copied."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Return x Wᵀ + b, or its GELU: [..., K] -> [..., N]; see `linear`."""
        return linear(x, self._weight, self._bias, gelu=gelu)

    def rows(self, chosen: slice) -> "PlainLinear":
        """Return the map to a slice of the N outputs; it shares the memory of the weight."""
        return PlainLinear(self._weight[chosen], None if self._bias is None else self._bias[chosen])


class ConcatenatedLinear:
    """Linear maps of one input as one map with concatenated outputs; their weights are not copied."""

    def __init__(self, linears: Sequence[PlainLinear]):
        self._linears = linears

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Return the concatenated outputs, or their GELU: [..., K] -> [..., ΣN]; see `linear`."""
        return torch.cat([linear(x, gelu=gelu) for linear in self._linears], -1)


class AccumulatingLinear:
    """A linear map whose results are accumulated into another tensor, by torch's `addmm`.

    Args:
        weight: [N, K].
        bias: [N] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self._transposed = weight.detach().contiguous().T
        self._bias = None if bias is None else bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b, [M, N]. x: [M, K], any row stride."""
        return x @ self._transposed if self._bias is None else torch.addmm(self._bias, x, self._transposed)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Add x Wᵀ to y in place and return y; y may have any row stride."""
        return y.addmm_(x, self._transposed)


def prepare_linear(weight: Tensor, bias: Tensor | None) -> PrepackedLinear | PlainLinear:
    """Return a linear map that is applied many times, with its weight prepacked if oneDNN is available."""
    return PrepackedLinear(weight, bias) if _has_onednn(weight) else PlainLinear(weight, bias)


def prepare_accumulating(weight: Tensor, bias: Tensor | None) -> PrepackedLinear | AccumulatingLinear:
    """Return a linear map whose results are accumulated into other tensors with `add_to`."""
    return PrepackedLinear(weight, bias) if prefers_onednn(weight) else AccumulatingLinear(weight, bias)


@cache
def is_heads_matmul_supported(dtype: torch.dtype) -> bool:
    """Return whether `heads_matmul_nt` is available for this dtype and computes the right result."""
    if not _is_right(dtype) or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((37, 96), (3, 64, 32), (192,))
    x, weights, bias = (torch.randn(size, generator=generator, device="cpu").to(dtype) for size in sizes)
    try:
        with torch.no_grad():
            ours = heads_matmul_nt(x, weights, bias)
    except (RuntimeError, TypeError):
        return False
    theirs = torch.einsum("ihk,hnk->ihn", x.double().view(37, 3, 32), weights.double()).flatten(1) + bias.double()
    return bool((ours.double() - theirs).abs().max() < (1e-4 if dtype is torch.float32 else 0.2))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    # oneDNN assumes a contiguous bias, and reads an expanded one out of bounds.
    bias = None if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, GELU if gelu else NO_EPILOGUE, [], "none")


def _dense(weight: Tensor) -> Tensor:
    """Return the weight with contiguous rows or columns: with other layouts oneDNN is a thousand times slower."""
    dense = weight.is_contiguous() or weight.T.is_contiguous()
    return weight if dense else weight.contiguous()


@cache
def _is_right(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's products are available for this dtype and equal torch's, with and without GELU."""
    operators = torch.ops.mkldnn
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    if dtype is torch.bfloat16 and not _has_instructions(dtype):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((37, 96), (64, 96), (64,))
    x, weight, bias = (torch.randn(size, generator=generator, device="cpu").to(dtype) for size in sizes)
    try:
        with torch.no_grad():
            plain = F.linear(x.double(), weight.double(), bias.double())
            found: Sequence[tuple[Tensor, Tensor]] = [
                (PrepackedLinear(weight, bias)(x), plain),
                (PrepackedLinear(weight, bias)(x, gelu=True), F.gelu(plain)),
                (_onednn(x, weight, bias, False), plain),
                (_onednn(x, weight.T.contiguous().T, bias, True), F.gelu(plain)),
            ]
    except (RuntimeError, TypeError):
        return False
    # Sums of 96 products of standard normals: about 10, so some hundred roundings of float32, or one of bfloat16.
    bound = 1e-4 if dtype is torch.float32 else 0.2
    return all(bool((ours.double() - theirs).abs().max() < bound) for ours, theirs in found)
