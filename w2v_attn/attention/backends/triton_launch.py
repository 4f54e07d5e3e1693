"""Launches the Triton kernels: attention of packed recordings with dropout and position biases.

The frames of all recordings are packed, N = ΣT of them, and every frame attends the frames of its own recording. Memory
is linear in N. Triton is imported only when a kernel is launched.
"""

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.attention.backends.sdpa import unit_stride
from w2v_attn.ops.triton_support import MIN_CAPABILITY, is_available, is_interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 256
# tl.dot needs at least this many channels.
MIN_CHANNELS = 16
# Rows per program of the kernel that computes δ, which is memory-bound.
DELTA_ROWS = 64
DROPOUT_LEVELS = 1 << 16


class TileSizes(NamedTuple):
    """The tile of one kernel: its rows and keys, warps of a program, and stages of the pipeline of loads."""

    rows: int
    keys: int
    warps: int
    stages: int


class KernelTiles(NamedTuple):
    """The tiles of the large kernels. With a table, the kernel of dq also sums dS along the diagonals of a tile."""

    forward: TileSizes
    backward_keys: TileSizes
    backward_rows: TileSizes
    backward_rows_table: TileSizes


# By the larger of both head sizes, padded. The side that a program keeps is long, because it decides how often the
# other side is reloaded; the side that it loops over is short, so that two or three tiles fit shared memory, of which
# consumer cards have 99 KiB. The limit is 255 registers per thread: the tiles of 64 channels need no more (compiled for
# sm_90), and two or more programs of each kernel except that of dk and dv fit a multiprocessor, so that one multiplies
# while another computes exponentials. A tensor core's tile has 64 rows for every four warps.
# Tiles do not depend on the lengths in a batch, so a recording's results are bit-identical in any batch.
HALF_TILES = {
    64: KernelTiles(
        TileSizes(128, 64, 8, 3), TileSizes(64, 128, 8, 3), TileSizes(64, 64, 4, 3), TileSizes(64, 32, 4, 3)
    ),
    128: KernelTiles(
        TileSizes(128, 64, 8, 2), TileSizes(64, 64, 8, 2), TileSizes(64, 32, 4, 2), TileSizes(64, 32, 4, 2)
    ),
    256: KernelTiles(
        TileSizes(64, 32, 4, 2), TileSizes(32, 32, 4, 2), TileSizes(32, 32, 4, 2), TileSizes(32, 32, 4, 2)
    ),
}
# Exact products of float32 run on CUDA cores, which read their factors from registers: tiles are small.
SINGLE_TILES = {
    64: KernelTiles(TileSizes(64, 32, 8, 2), TileSizes(32, 32, 8, 2), TileSizes(64, 32, 8, 2), TileSizes(32, 32, 4, 2)),
    128: KernelTiles(
        TileSizes(32, 32, 8, 2), TileSizes(16, 32, 8, 1), TileSizes(32, 16, 8, 1), TileSizes(32, 16, 8, 1)
    ),
    256: KernelTiles(
        TileSizes(32, 16, 8, 1), TileSizes(16, 16, 8, 1), TileSizes(16, 16, 8, 1), TileSizes(16, 16, 8, 1)
    ),
}


def kernels_unsupported_reason(q: Tensor, v: Tensor) -> str | None:
    """Return why the kernels do not support these queries [N, H, D] and values [N, H, E]; None if they do."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not is_interpreted():
        if not q.is_cuda:
            return f"the Triton kernels run on CUDA devices, got {q.device.type}"
        if torch.cuda.get_device_capability(q.device) < MIN_CAPABILITY:
            return "the Triton kernels need a device of compute capability 8.0 or newer"
    if q.dtype not in DTYPES:
        return f"the Triton kernels need single or half precision, got {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > MAX_CHANNELS:
        return f"the Triton kernels have at most {MAX_CHANNELS} channels per head, got {max(q.shape[-1], v.shape[-1])}"
    return None


def is_faster_than_flash(q: Tensor) -> bool:
    """Return whether the kernels are faster than torch's flash attention with cu_seqlens, without dropout.

    On an H200, with 64 channels per head, they are 1.2 to 1.3 × as fast in the forward and 1.1 × in the backward; with
    dropout 0.7 × in both, because Philox is costly. Other GPU generations and larger heads were not measured.
    """
    return (
        is_available(q.device) and torch.cuda.get_device_capability(q.device)[0] == 9 and q.shape[-1] <= min(HALF_TILES)
    )


def forward_packed(
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHE: Tensor,
    cu_seqlens: Tensor,
    *,
    max_frames: int,
    scale: float,
    dropout: float = 0.0,
    seed: int = 0,
    table_HR: Tensor | None = None,
    gate_NH: Tensor | None = None,
    rows_NHM: Tensor | None = None,
    left: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return o [N, H, E] of steps (2) to (5), in the dtype of v, and the log-sum-exp, float32 [H, N].

    Args:
        q_NHD: Queries.
        k_NHD: Keys.
        v_NHE: Values.
        cu_seqlens: int32 [B + 1] on the device, from 0 to N; recording b has the frames cu_seqlens[b] to
            cu_seqlens[b + 1].
        max_frames: Frames of the longest recording, or more. It sizes the grid; results do not depend on it.
        scale: Factor on the scores.
        dropout: Rate that applies now.
        seed: 0 ≤ seed < 2⁶³. Whether an entry of P is dropped depends only on the seed, its head, its row among all
            frames and its key in the recording.
        table_HR: float32 [H, 2R + 1]. The score of query i and key j gets table[h, clamp(j − i, −R, R) + R] added.
        gate_NH: float32 [N, H], a factor gate[i, h] on the table.
        rows_NHM: float32 [N, H, M], instead of a table. The score of query i and key j gets
            rows[i, h, clamp(j − i, −left, M − 1 − left) + left] added.
        left: Distances before a query in `rows_NHM`.
    """
    from w2v_attn.attention.backends import triton_kernels

    N, H, _ = q_NHD.shape
    q, k, v = unit_stride(q_NHD), unit_stride(k_NHD), unit_stride(v_NHE)
    o = v.new_empty(N, H, v.shape[-1])
    lse = torch.empty(H, N, dtype=torch.float32, device=q.device)
    table, gate, rows = _contiguous(table_HR), _contiguous(gate_NH), _contiguous(rows_NHM)
    tiles = _kernel_tiles(q, v).forward
    slots = _slots(cu_seqlens, N, max_frames, tiles.rows)
    if N:
        _launch(
            triton_kernels.attention_kernel, slots[0] * H,
            *_strided(q, k, v, o), lse, table, gate, rows, cu_seqlens, len(cu_seqlens) - 1, *slots, N, H, scale,
            *_dropout(dropout, seed), _radius(table), left, _distances(rows),
            **_widths(q, v), **_options(tiles, table, gate, rows, dropout),
        )  # fmt: skip
    return o, lse


def backward_packed(
    do_NHE: Tensor,
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHE: Tensor,
    o_NHE: Tensor,
    lse_HN: Tensor,
    cu_seqlens: Tensor,
    *,
    max_frames: int,
    scale: float,
    dropout: float = 0.0,
    seed: int = 0,
    table_HR: Tensor | None = None,
    gate_NH: Tensor | None = None,
    rows_NHM: Tensor | None = None,
    left: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return dq, dk, dv in the dtypes of q, k, v, and dtable, dgate and drows in float32, or None.

    The arguments are those of `forward_packed`, what it returned, and `do_NHE`, the gradient of o. dtable is summed
    with atomic additions, so its last bits may differ from run to run; everything else is deterministic.
    """
    from w2v_attn.attention.backends import triton_kernels

    N, H, _ = q_NHD.shape
    do, q, k, v, o = (unit_stride(x) for x in (do_NHE, q_NHD, k_NHD, v_NHE, o_NHE))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    table, gate, rows = _contiguous(table_HR), _contiguous(gate_NH), _contiguous(rows_NHM)
    dtable, dgate = None if table is None else torch.zeros_like(table), None if gate is None else torch.empty_like(gate)
    drows = None if rows is None else torch.zeros_like(rows)  # zero where a row has no key at a distance
    if not N:
        return dq, dk, dv, dtable, dgate, drows
    delta = torch.empty_like(lse_HN)
    widths, all_tiles = _widths(q, v), _kernel_tiles(q, v)
    inputs = (*_strided(do, q, k, v), lse_HN, delta, table, gate, rows)
    numbers = (N, H, scale, *_dropout(dropout, seed), _radius(table), left, _distances(rows))
    blocks = -(-N // DELTA_ROWS)
    _launch(
        triton_kernels.row_sums_kernel, blocks * H, *_strided(do, o), delta, blocks, N,
        E=widths["E"], E_PADDED=widths["E_PADDED"], TILE_I=DELTA_ROWS, enable_fp_fusion=True,
    )  # fmt: skip
    tiles = all_tiles.backward_keys
    slots = _slots(cu_seqlens, N, max_frames, tiles.keys)
    _launch(
        triton_kernels.backward_keys_kernel, slots[0] * H,
        *inputs, *_strided(dk, dv), cu_seqlens, len(cu_seqlens) - 1, *slots, *numbers,
        **widths, **_options(tiles, table, gate, rows, dropout),
    )  # fmt: skip
    tiles = all_tiles.backward_rows if table is None and rows is None else all_tiles.backward_rows_table
    slots = _slots(cu_seqlens, N, max_frames, tiles.rows)
    _launch(
        triton_kernels.backward_rows_kernel, slots[0] * H,
        *inputs, *_strided(dq), dtable, dgate, drows, cu_seqlens, len(cu_seqlens) - 1, *slots, *numbers,
        **widths, **_options(tiles, table, gate, rows, dropout),
    )  # fmt: skip
    return dq, dk, dv, dtable, dgate, drows


# --------------------------------------------------------------------------------- arguments of the kernels


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch a kernel on the device of its first argument. Only the first axis of a grid may be longer than 65535."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **options)


def _kernel_tiles(q: Tensor, v: Tensor) -> KernelTiles:
    channels = max(_padded(q.shape[-1]), _padded(v.shape[-1]), min(HALF_TILES))
    return (SINGLE_TILES if q.dtype == torch.float32 else HALF_TILES)[channels]


def _slots(cu_seqlens: Tensor, num_frames: int, max_frames: int, tile: int) -> tuple[int, int]:
    """Return (num_slots, slots_per_recording) of `triton_kernels.find_tile`, for the numbering with fewer slots.

    Neither needs the values of cu_seqlens, which are on the device.
    """
    num_recordings = len(cu_seqlens) - 1
    each = -(-max_frames // tile)
    packed = num_frames // tile + num_recordings
    return (each * num_recordings, each) if each * num_recordings <= packed else (packed, 0)


def _padded(channels: int) -> int:
    return max(MIN_CHANNELS, 1 << (channels - 1).bit_length())


def _widths(q: Tensor, v: Tensor) -> dict[str, int]:
    D, E = q.shape[-1], v.shape[-1]
    return {"D": D, "D_PADDED": _padded(D), "E": E, "E_PADDED": _padded(E)}


def _strided(*tensors: Tensor) -> tuple[Any, ...]:
    """Return each tensor [N, H, channels] followed by its strides of frames and heads."""
    return tuple(part for x in tensors for part in (x, x.stride(0), x.stride(1)))


def _dropout(rate: float, seed: int) -> tuple[int, int, float]:
    """Return (seed, threshold, keep rate). The rate is rounded to a multiple of 2⁻¹⁶, and the keep rate is exact."""
    threshold = min(round(DROPOUT_LEVELS * rate), DROPOUT_LEVELS - 1)
    return seed, threshold, 1.0 - threshold / DROPOUT_LEVELS


def _radius(table_HR: Tensor | None) -> int:
    return 0 if table_HR is None else table_HR.shape[1] // 2


def _distances(rows_NHM: Tensor | None) -> int:
    return 0 if rows_NHM is None else rows_NHM.shape[2]


def _options(
    tiles: TileSizes, table: Tensor | None, gate: Tensor | None, rows: Tensor | None, dropout: float
) -> dict[str, int | bool]:
    assert gate is None or table is not None, "a gate needs a table"
    assert table is None or rows is None
    return {
        "TILE_I": tiles.rows,
        "TILE_J": tiles.keys,
        "HAS_TABLE": table is not None,
        "HAS_GATE": gate is not None,
        "HAS_ROWS": rows is not None,
        "HAS_DROPOUT": dropout > 0,
        "num_warps": tiles.warps,
        # rows_NHM is as large as the scores: with more stages its loads would fill the shared memory.
        "num_stages": tiles.stages if rows is None else 1,
        "enable_fp_fusion": True,
    }


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
