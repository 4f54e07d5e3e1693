"""The Triton kernels of `fusions.py`, which imports this module when it launches a kernel.

Legend: M rows, N columns and K inner channels of a product; T windows of the first convolution; C channels.
Sums are in float32, whatever the dtypes are.
"""

# The body of a kernel is in Triton's language, with other types than Python's.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from w2v_attn.ops.triton_support import is_interpreted

SQRT_HALF = tl.constexpr(0.7071067811865476)
INTERPRETED = tl.constexpr(is_interpreted())
# Sizes that change with every batch: if Triton specialised kernels to their values, it would recompile them each time.
VARYING = ["M", "T"]


@triton.jit
def gelu(x):
    """Return the exact GELU, x Φ(x)."""
    return 0.5 * x * (1.0 + tl.math.erf(x * SQRT_HALF))


@triton.jit(do_not_specialize=VARYING)
def window_product_kernel(
    x, weight, bias, y, M, N, K,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BAND: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Compute y [M, N] = x weightᵀ + bias, or its GELU. Each program computes one tile of y.

    x, weight, y: tensor descriptors of [M, K], [N, K] and [M, N]. The rows of x may overlap in memory.
    """
    rows_of_tiles = tl.cdiv(M, ROWS)
    columns_of_tiles = tl.cdiv(N, COLUMNS)
    program = tl.program_id(0)
    first = program // (BAND * columns_of_tiles) * BAND
    height = tl.minimum(rows_of_tiles - first, BAND)
    place = program % (BAND * columns_of_tiles)
    row = (first + place % height) * ROWS
    column = place // height * COLUMNS

    y_MN = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, K, INNER):
        x_MK = x.load([row, k])
        weight_NK = weight.load([column, k])
        if INTERPRETED:  # Triton's interpreter cannot multiply bfloat16
            x_MK = x_MK.to(tl.float32)
            weight_NK = weight_NK.to(tl.float32)
        y_MN = tl.dot(x_MK, weight_NK.T, y_MN)
    if bias is not None:
        columns = column + tl.arange(0, COLUMNS)
        y_MN += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y_MN = gelu(y_MN)
    y.store([row, column], y_MN.to(y.dtype))


@triton.jit(do_not_specialize=VARYING)
def first_convolution_kernel(
    samples, weights, owners, y, T, windows, C,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, WINDOWS: tl.constexpr, CHANNELS: tl.constexpr,
    GELU: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute y [T, C]: each window times the weights of its recording.

    Each program computes WINDOWS windows of one block and CHANNELS channels.

    weights: float32 [R, WIDTH, C]: KERNEL weights of samples, the bias, zeros. owners: recording of each block; a block
    has `windows` windows, a multiple of WINDOWS.
    """
    tiles = tl.cdiv(C, CHANNELS)
    first = tl.program_id(0) // tiles * WINDOWS
    owner = tl.load(owners + first // windows)
    t = first + tl.arange(0, WINDOWS)
    k = tl.arange(0, WIDTH)
    c = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    x_TK = tl.load(
        samples + (t.to(tl.int64) * STRIDE)[:, None] + k[None, :],
        mask=(t < T)[:, None] & (k < KERNEL)[None, :],
        other=0.0,
    )
    x_TK = tl.where((k == KERNEL)[None, :], 1.0, x_TK)
    weights_KC = tl.load(weights + (owner * WIDTH + k)[:, None] * C + c[None, :], mask=(c < C)[None, :], other=0.0)
    y_TC = tl.dot(x_TK, weights_KC, input_precision=PRECISION)
    if GELU:
        y_TC = gelu(y_TC)
    place = y + t.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(place, y_TC.to(y.dtype.element_ty), mask=(t < T)[:, None] & (c < C)[None, :])


@triton.jit
def layer_norm_kernel(x, y, weight, bias, total, wide, narrow, C, eps, PADDED: tl.constexpr, GELU: tl.constexpr):
    """Compute the LayerNorm of x + y, or of x alone, [N, C]. Each program computes one row.

    The sum is written to `total` and the norm to `wide` and `narrow`; `total` and `wide` may be None.
    """
    start = tl.program_id(0).to(tl.int64) * C
    c = tl.arange(0, PADDED)
    real = c < C
    sum_C = tl.load(x + start + c, mask=real, other=0.0).to(tl.float32)
    if y is not None:
        sum_C += tl.load(y + start + c, mask=real, other=0.0).to(tl.float32)
    if total is not None:
        tl.store(total + start + c, sum_C, mask=real)
    centred_C = tl.where(real, sum_C - tl.sum(sum_C, 0) / C, 0.0)
    found_C = centred_C * tl.rsqrt(tl.sum(centred_C * centred_C, 0) / C + eps)
    if weight is not None:
        found_C *= tl.load(weight + c, mask=real, other=0.0).to(tl.float32)
    if bias is not None:
        found_C += tl.load(bias + c, mask=real, other=0.0).to(tl.float32)
    if GELU:
        found_C = gelu(found_C)
    if wide is not None:
        tl.store(wide + start + c, found_C, mask=real)
    tl.store(narrow + start + c, found_C.to(narrow.dtype.element_ty), mask=real)
