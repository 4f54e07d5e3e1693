"""Fused steps of the encoder on a GPU: one kernel launch where torch needs several and stores the frames in between.

There are three fusions: a convolution as a product with overlapping windows of frames, and GELU; the first convolution
with separate weights per recording, and GELU; a sum, a LayerNorm in the dtypes that the next steps need, and GELU. The
kernels are in `fusion_kernels.py`. Nothing here is differentiable. Callers check `is_supported`,
`is_window_product_supported` and `is_first_convolution_supported` first, and otherwise call torch's own operators.
"""

from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.ops import triton_support

HALF = (torch.float16, torch.bfloat16)
# The products load their tiles with the tensor memory accelerator, which GPUs have from Hopper on.
MIN_PRODUCT_CAPABILITY = (9, 0)
# Tile of a product: rows, columns, inner channels; warps, stages. The fastest of several on an H200, for 512 columns.
# Shared memory holds STAGES tiles of both factors at two bytes per number; consumer cards have less.
ROWS, COLUMNS, INNER, WARPS, STAGES = 128, 256, 64, 8, 4
SHARED_MEMORY = (ROWS + COLUMNS) * INNER * STAGES * 2 + 1024
# Tiles are visited in bands of BAND tiles of rows, each over all columns, so that their inputs stay in the cache.
BAND = 8
# The tensor memory accelerator needs rows that begin at multiples of 16 bytes.
ALIGNMENT = 8
# Windows and channels of a tile of the first convolution, and the width that its windows are padded to.
FIRST_WINDOWS, FIRST_CHANNELS, FIRST_WIDTH = 64, 128, 16


def is_supported(device: torch.device) -> bool:
    """Return whether the kernels of norms and of the first convolution run on this device."""
    return device.type == "cuda" and triton_support.is_available(device)


def is_window_product_supported(weight: Tensor, kernel: int) -> bool:
    """Return whether `window_product` supports this weight [N, kernel · C], with frames of the same dtype."""
    N, K = weight.shape
    aligned = N % ALIGNMENT == 0 and K // kernel % ALIGNMENT == 0
    if not is_supported(weight.device) or weight.dtype not in HALF or not aligned:
        return False
    properties = torch.cuda.get_device_properties(weight.device)
    enough = properties.shared_memory_per_block_optin >= SHARED_MEMORY
    return (properties.major, properties.minor) >= MIN_PRODUCT_CAPABILITY and enough


def window_product(
    frames: Tensor, kernel: int, stride: int, weight: Tensor, bias: Tensor | None, *, gelu: bool
) -> Tensor:
    """Return a convolution of frames, as a product with their windows: [(T − kernel) // stride + 1, N].

    Args:
        frames: [T, C], contiguous.
        kernel: Taps of the convolution.
        stride: Stride of the convolution.
        weight: [N, kernel · C].
        bias: [N] or None.
        gelu: Whether to apply GELU.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    from w2v_attn.ops import fusion_kernels

    (T, C), (N, K) = frames.shape, weight.shape
    M = (T - kernel) // stride + 1
    y = frames.new_empty(M, N)
    _launch(
        fusion_kernels.window_product_kernel, -(-M // ROWS) * -(-N // COLUMNS), y,
        TensorDescriptor(frames, [M, K], [stride * C, 1], [ROWS, INNER]),
        TensorDescriptor(weight, [N, K], [K, 1], [COLUMNS, INNER]),
        _contiguous(bias),
        TensorDescriptor(y, [M, N], [N, 1], [ROWS, COLUMNS]),
        M, N, K, ROWS=ROWS, COLUMNS=COLUMNS, INNER=INNER, BAND=BAND, GELU=gelu, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return y


def first_convolution(
    samples: Tensor, weights: Tensor, owners: Tensor, *, count: int, kernel: int, stride: int, windows: int,
    dtype: torch.dtype, gelu: bool,
) -> Tensor:  # fmt: skip
    """Return the first convolution of packed recordings, each with its own weights: [count, C] in `dtype`.

    Args:
        samples: float32 [samples], the packed recordings.
        weights: float32 [R, FIRST_WIDTH, C]: `kernel` taps, the bias, then zeros.
        owners: int64 [blocks], the recording that each block of windows belongs to.
        count: Number of output frames.
        kernel: Taps of the convolution.
        stride: Stride of the convolution.
        windows: Windows per block, a multiple of FIRST_WINDOWS.
        dtype: Dtype of the output.
        gelu: Whether to apply GELU.
    """
    from w2v_attn.ops import fusion_kernels

    C = weights.shape[-1]
    y = torch.empty(count, C, dtype=dtype, device=samples.device)
    tiles = -(-count // FIRST_WINDOWS) * -(-C // FIRST_CHANNELS)
    _launch(
        fusion_kernels.first_convolution_kernel, tiles, y,
        samples, weights, owners, y, count, windows, C, KERNEL=kernel, STRIDE=stride, WIDTH=FIRST_WIDTH,
        WINDOWS=FIRST_WINDOWS, CHANNELS=FIRST_CHANNELS, GELU=gelu,
        # With half precisions stock rounds these factors to 8 or 11 bits; tf32 keeps 11.
        PRECISION="tf32" if dtype in HALF else "ieee", num_warps=4,
    )  # fmt: skip
    return y


def is_first_convolution_supported(kernel: int, windows: int) -> bool:
    """Return whether `first_convolution` supports these sizes: a tile holds a window and its bias of one recording."""
    return kernel < FIRST_WIDTH and windows % FIRST_WINDOWS == 0


def add_norm(y: Tensor, x: Tensor, norm: nn.LayerNorm, *, half: torch.dtype, keeps: str) -> tuple[Tensor, Tensor]:
    """Return the sum x + y or its LayerNorm in the dtype of x, and the LayerNorm in `half`.

    Args:
        y: [N, C] of any dtype.
        x: [N, C], contiguous.
        norm: LayerNorm of C channels.
        half: Dtype of the second output.
        keeps: First output: "sum" or "norm".
    """
    narrow = torch.empty_like(x, dtype=half)
    wide = torch.empty_like(x) if keeps == "sum" or half != x.dtype else narrow
    _norm(x, y, norm, total=wide if keeps == "sum" else None, wide=wide if keeps == "norm" else None, narrow=narrow)
    return wide, narrow


def norm_gelu(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """Return the GELU of the LayerNorm of x [N, C], contiguous, in `dtype`."""
    found = torch.empty_like(x, dtype=dtype)
    _norm(x, None, norm, narrow=found, gelu=True)
    return found


def _norm(
    x: Tensor, y: Tensor | None, norm: nn.LayerNorm, *, narrow: Tensor, total: Tensor | None = None,
    wide: Tensor | None = None, gelu: bool = False,
) -> None:  # fmt: skip
    from w2v_attn.ops import fusion_kernels

    N, C = x.shape
    weight, bias = _contiguous(norm.weight), _contiguous(norm.bias)  # the kernels assume contiguous parameters
    if N:
        _launch(
            fusion_kernels.layer_norm_kernel, N, x,
            x, y, weight, bias, total, None if wide is narrow else wide, narrow, C, norm.eps,
            PADDED=1 << (C - 1).bit_length(), GELU=gelu, num_warps=1 if C <= 512 else 2,
        )  # fmt: skip


def _contiguous(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def _launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **options: Any) -> None:
    """Launch a kernel on the device of `like`."""
    with torch.cuda.device_of(like):
        kernel[(programs,)](*arguments, **options)
