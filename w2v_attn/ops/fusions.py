"""Steps of the encoder that are one launch on a GPU; torch takes several, and the frames go to memory between them.

Three kinds: a convolution as a product with windows of frames, which overlap in memory, and GELU; the first convolution
with the weights of each recording, and GELU; a sum and a LayerNorm, in the dtypes that the next steps want, and GELU.
The kernels are in `fusion_kernels.py`. Nothing here is differentiable. Where they do not serve, `serves` and
`serves_products` say so, and whoever asked has torch's own operators.
"""

from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.ops import triton_support

HALF = (torch.float16, torch.bfloat16)
# The products load their tiles with the copy engine that GPUs have from Hopper on.
CAPABILITY_OF_PRODUCTS = (9, 0)
# Tile of a product: rows, columns, inner channels; warps, stages. The fastest of some on an H200, for 512 columns. What
# waits in shared memory are so many stages of a tile of both sides, two bytes a number; consumer cards have less.
ROWS, COLUMNS, INNER, WARPS, STAGES = 128, 256, 64, 8, 4
SHARED_MEMORY = (ROWS + COLUMNS) * INNER * STAGES * 2 + 1024
# Bands of so many tiles of rows go over all columns before the next: what they read stays in the cache.
BAND = 8
# The copy engine wants lines that begin at multiples of 16 bytes.
ALIGNMENT = 8
# Windows and channels of a tile of the first convolution, and the width that its windows are filled up to.
FIRST_WINDOWS, FIRST_CHANNELS, FIRST_WIDTH = 64, 128, 16


def serves(device: torch.device) -> bool:
    """Whether the kernels of norms and of the first convolution run there."""
    return device.type == "cuda" and triton_support.is_available(device)


def serves_products(weight: Tensor, kernel: int) -> bool:
    """Whether `window_product` does: a weight [N, kernel · C], frames of the same dtype."""
    N, K = weight.shape
    aligned = N % ALIGNMENT == 0 and K // kernel % ALIGNMENT == 0
    if not serves(weight.device) or weight.dtype not in HALF or not aligned:
        return False
    there = torch.cuda.get_device_properties(weight.device)
    enough = there.shared_memory_per_block_optin >= SHARED_MEMORY
    return (there.major, there.minor) >= CAPABILITY_OF_PRODUCTS and enough


def window_product(
    frames: Tensor, kernel: int, stride: int, weight: Tensor, bias: Tensor | None, *, gelu: bool
) -> Tensor:
    """A convolution as a product with the windows of its frames: [T, C] -> [(T − kernel) // stride + 1, N].

    frames: contiguous. weight: [N, kernel · C]. gelu: whether GELU follows.
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    from w2v_attn.ops import fusion_kernels

    (T, C), (N, K) = frames.shape, weight.shape
    M = (T - kernel) // stride + 1
    y = frames.new_empty(M, N)
    _launch(
        fusion_kernels.window_product, -(-M // ROWS) * -(-N // COLUMNS), y,
        TensorDescriptor(frames, [M, K], [stride * C, 1], [ROWS, INNER]),
        TensorDescriptor(weight, [N, K], [K, 1], [COLUMNS, INNER]),
        _contiguous(bias),
        TensorDescriptor(y, [M, N], [N, 1], [ROWS, COLUMNS]),
        M, N, K, ROWS=ROWS, COLUMNS=COLUMNS, INNER=INNER, BAND=BAND, GELU=gelu, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return y


def first_frames(
    samples: Tensor, weights: Tensor, owners: Tensor, *, count: int, kernel: int, stride: int, windows: int,
    dtype: torch.dtype, gelu: bool,
) -> Tensor:  # fmt: skip
    """The first convolution over recordings in their slots, each with its own weights: [count, C] in `dtype`.

    samples: float32 [samples]. weights: float32 [R, FIRST_WIDTH, C], the bias after `kernel` of them, then zeros.
    owners: int64 [blocks], the recording that the `windows` windows of each block are of. gelu: whether GELU follows.
    """
    from w2v_attn.ops import fusion_kernels

    C = weights.shape[-1]
    y = torch.empty(count, C, dtype=dtype, device=samples.device)
    tiles = -(-count // FIRST_WINDOWS) * -(-C // FIRST_CHANNELS)
    _launch(
        fusion_kernels.first_frames, tiles, y,
        samples, weights, owners, y, count, windows, C, KERNEL=kernel, STRIDE=stride, WIDTH=FIRST_WIDTH,
        WINDOWS=FIRST_WINDOWS, CHANNELS=FIRST_CHANNELS, GELU=gelu,
        # With half precisions stock rounds these factors to 8 or 11 bits; tf32 keeps 11.
        PRECISION="tf32" if dtype in HALF else "ieee", num_warps=4,
    )  # fmt: skip
    return y


def serves_first(kernel: int, windows: int) -> bool:
    """Whether `first_frames` does: a window with its bias fits, and a tile is of one recording."""
    return kernel < FIRST_WIDTH and windows % FIRST_WINDOWS == 0


def add_norm(y: Tensor, x: Tensor, norm: nn.LayerNorm, *, half: torch.dtype, keeps: str) -> tuple[Tensor, Tensor]:
    """x + y and its LayerNorm -> what is kept, in the dtype of x, and the norm in `half`.

    y: [N, C] of any dtype. x: [N, C] contiguous. keeps: "sum" or "norm".
    """
    narrow = torch.empty_like(x, dtype=half)
    wide = torch.empty_like(x) if keeps == "sum" or half != x.dtype else narrow
    _norm(x, y, norm, total=wide if keeps == "sum" else None, wide=wide if keeps == "norm" else None, narrow=narrow)
    return wide, narrow


def norm_gelu(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """LayerNorm and GELU: [N, C] contiguous -> [N, C] in `dtype`."""
    found = torch.empty_like(x, dtype=dtype)
    _norm(x, None, norm, narrow=found, gelu=True)
    return found


def _norm(
    x: Tensor, y: Tensor | None, norm: nn.LayerNorm, *, narrow: Tensor, total: Tensor | None = None,
    wide: Tensor | None = None, gelu: bool = False,
) -> None:  # fmt: skip
    from w2v_attn.ops import fusion_kernels

    N, C = x.shape
    weight, bias = _contiguous(norm.weight), _contiguous(norm.bias)  # kernels read them without gaps
    if N:
        _launch(
            fusion_kernels.norm, N, x,
            x, y, weight, bias, total, None if wide is narrow else wide, narrow, C, norm.eps,
            PADDED=1 << (C - 1).bit_length(), GELU=gelu, num_warps=1 if C <= 512 else 2,
        )  # fmt: skip


def _contiguous(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def _launch(kernel: Any, programs: int, beside: Tensor, *arguments: Any, **options: Any) -> None:
    """Runs a kernel on the device of `beside`."""
    with torch.cuda.device_of(beside):
        kernel[(programs,)](*arguments, **options)
