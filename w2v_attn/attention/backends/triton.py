"""The Triton backend: attention of recordings of different lengths, without padding, with dropout and position bias.

Frames of all recordings stand one after another, N = ΣT of them, and every frame attends the frames of its own
recording. Memory is linear in N. Triton is imported when a kernel is to run, so this module is there without it.
"""

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.ops.triton_support import CAPABILITY, is_available, is_interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNELS = 256
# What tl.dot multiplies is at least this wide.
MIN_CHANNELS = 16
# Rows of which δ is summed at a time: as many as keep a memory-bound kernel busy.
DELTA_ROWS = 64
DROPOUT_LEVELS = 1 << 16


class Tiles(NamedTuple):
    """How one kernel is cut: rows and keys of a tile, warps of a program, stages of its pipeline of loads."""

    rows: int
    keys: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """The tiles of the large kernels. With a table, dq's also sums dS along the diagonals of a tile."""

    forward: Tiles
    backward_keys: Tiles
    backward_rows: Tiles
    backward_rows_table: Tiles


# By the wider of both head sizes, padded. The side a program keeps is long, because it decides how often the other side
# is read again; the side it loops over is short enough that two or three tiles of it wait in shared memory, of which
# consumer cards have 99 KiB. The limit are 255 registers a thread: the 64-wide tiles need no more (compiled for sm_90),
# and two or more programs of each kernel but dk's and dv's fit a multiprocessor, so that one multiplies while another
# one takes exponentials. A tensor core's tile has 64 rows for each four warps.
# Tiles do not depend on the lengths in a batch: so neither do a recording's results, to the last bit.
HALF_PLANS = {
    64: Plan(Tiles(128, 64, 8, 3), Tiles(64, 128, 8, 3), Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 3)),
    128: Plan(Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2), Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 2)),
    256: Plan(Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 2), Tiles(32, 32, 4, 2), Tiles(32, 32, 4, 2)),
}
# Exact products of float32 run on the ordinary units, which take their factors from registers: tiles are small.
SINGLE_PLANS = {
    64: Plan(Tiles(64, 32, 8, 2), Tiles(32, 32, 8, 2), Tiles(64, 32, 8, 2), Tiles(32, 32, 4, 2)),
    128: Plan(Tiles(32, 32, 8, 2), Tiles(16, 32, 8, 1), Tiles(32, 16, 8, 1), Tiles(32, 16, 8, 1)),
    256: Plan(Tiles(32, 16, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1), Tiles(16, 16, 8, 1)),
}


def unsupported_reason(q: Tensor, v: Tensor) -> str | None:
    """What of this request the kernels cannot do; None when they can do it all.

    q: [N, H, D], v: [N, H, E].
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not is_interpreted():
        if not q.is_cuda:
            return f"the Triton kernels run on CUDA devices, got {q.device.type}"
        if torch.cuda.get_device_capability(q.device) < CAPABILITY:
            return "the Triton kernels need a device of compute capability 8.0 or newer"
    if q.dtype not in DTYPES:
        return f"the Triton kernels need single or half precision, got {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > MAX_CHANNELS:
        return f"the Triton kernels have at most {MAX_CHANNELS} channels a head, got {max(q.shape[-1], v.shape[-1])}"
    return None


def is_faster_than_flash(q: Tensor) -> bool:
    """Whether the kernels are faster than torch's flash attention over offsets where there is no dropout.

    On an H200, with 64 channels a head, 1.2 to 1.3 × forward and 1.1 × backward; with dropout 0.7 × in both, for Philox
    is costly. Other generations and wider heads were not measured.
    """
    return (
        is_available(q.device) and torch.cuda.get_device_capability(q.device)[0] == 9 and q.shape[-1] <= min(HALF_PLANS)
    )


def forward(
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHE: Tensor,
    offsets: Tensor,
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
    """Steps (2) to (5) -> o [N, H, E] in the dtype of v, and the log-sum-exp, float32 [H, N].

    offsets: int32 [B + 1] on the device, from 0 to N; recording b has the frames offsets[b] to offsets[b + 1].
    max_frames: frames of the longest recording, or more. It sizes the grid; results do not depend on it.
    seed: 0 ≤ seed < 2⁶³; an entry of P is kept or dropped by it, its head, its row among all frames and its key in the
    recording, and by nothing else.
    table_HR: float32 [H, 2R + 1], added to the score of query i and key j is table[h, clamp(j − i, −R, R) + R], times
    gate[i, h] where gate_NH, float32 [N, H], is given.
    rows_NHM: float32 [N, H, M] and left: instead, added to the score of query i and key j is
    rows[i, h, clamp(j − i, −left, M − 1 − left) + left].
    """
    from w2v_attn.attention.backends import triton_kernels

    N, H, _ = q_NHD.shape
    q, k, v = _unit_stride(q_NHD), _unit_stride(k_NHD), _unit_stride(v_NHE)
    o = v.new_empty(N, H, v.shape[-1])
    lse = torch.empty(H, N, dtype=torch.float32, device=q.device)
    table, gate, rows = _contiguous(table_HR), _contiguous(gate_NH), _contiguous(rows_NHM)
    tiles = _plan(q, v).forward
    slots = _slots(offsets, N, max_frames, tiles.rows)
    if N:
        _launch(
            triton_kernels.attend, slots[0] * H,
            *_strided(q, k, v, o), lse, table, gate, rows, offsets, len(offsets) - 1, *slots, N, H, scale,
            *_dropout(dropout, seed), _radius(table), left, _distances(rows),
            **_widths(q, v), **_options(tiles, table, gate, rows, dropout),
        )  # fmt: skip
    return o, lse


def backward(
    do_NHE: Tensor,
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHE: Tensor,
    o_NHE: Tensor,
    lse_HN: Tensor,
    offsets: Tensor,
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
    """Undoes (5) to (2) -> dq, dk, dv in the dtypes of q, k, v; and dtable, dgate and drows in float32 where they are.

    Arguments as in `forward`, and what it returned. dtable is added up in whatever order the device's programs come:
    its last bits may differ from run to run. Everything else is the same each time.
    """
    from w2v_attn.attention.backends import triton_kernels

    N, H, _ = q_NHD.shape
    do, q, k, v, o = (_unit_stride(x) for x in (do_NHE, q_NHD, k_NHD, v_NHE, o_NHE))
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    table, gate, rows = _contiguous(table_HR), _contiguous(gate_NH), _contiguous(rows_NHM)
    dtable, dgate = None if table is None else torch.zeros_like(table), None if gate is None else torch.empty_like(gate)
    drows = None if rows is None else torch.zeros_like(rows)  # a row has no key at some of its distances
    if not N:
        return dq, dk, dv, dtable, dgate, drows
    delta = torch.empty_like(lse_HN)
    widths, plan = _widths(q, v), _plan(q, v)
    inputs = (*_strided(do, q, k, v), lse_HN, delta, table, gate, rows)
    numbers = (N, H, scale, *_dropout(dropout, seed), _radius(table), left, _distances(rows))
    blocks = -(-N // DELTA_ROWS)
    _launch(
        triton_kernels.sum_rows, blocks * H, *_strided(do, o), delta, blocks, N,
        E=widths["E"], E_PADDED=widths["E_PADDED"], TILE_I=DELTA_ROWS, enable_fp_fusion=True,
    )  # fmt: skip
    tiles = plan.backward_keys
    slots = _slots(offsets, N, max_frames, tiles.keys)
    _launch(
        triton_kernels.attend_backward_keys, slots[0] * H,
        *inputs, *_strided(dk, dv), offsets, len(offsets) - 1, *slots, *numbers,
        **widths, **_options(tiles, table, gate, rows, dropout),
    )  # fmt: skip
    tiles = plan.backward_rows if table is None and rows is None else plan.backward_rows_table
    slots = _slots(offsets, N, max_frames, tiles.rows)
    _launch(
        triton_kernels.attend_backward_rows, slots[0] * H,
        *inputs, *_strided(dq), dtable, dgate, drows, offsets, len(offsets) - 1, *slots, *numbers,
        **widths, **_options(tiles, table, gate, rows, dropout),
    )  # fmt: skip
    return dq, dk, dv, dtable, dgate, drows


# --------------------------------------------------------------------------------- arguments of the kernels


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Runs a kernel on its first argument's device. The grid's first axis is the only one that goes beyond 65535."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **options)


def _plan(q: Tensor, v: Tensor) -> Plan:
    channels = max(_padded(q.shape[-1]), _padded(v.shape[-1]), min(HALF_PLANS))
    return (SINGLE_PLANS if q.dtype == torch.float32 else HALF_PLANS)[channels]


def _slots(offsets: Tensor, num_frames: int, max_frames: int, tile: int) -> tuple[int, int]:
    """(num_slots, slots_each) of `triton_kernels.find_tile`: the numbering with fewer slots.

    Neither needs the offsets themselves, which are on the device.
    """
    num_recordings = len(offsets) - 1
    each = -(-max_frames // tile)
    packed = num_frames // tile + num_recordings
    return (each * num_recordings, each) if each * num_recordings <= packed else (packed, 0)


def _padded(channels: int) -> int:
    return max(MIN_CHANNELS, 1 << (channels - 1).bit_length())


def _widths(q: Tensor, v: Tensor) -> dict[str, int]:
    D, E = q.shape[-1], v.shape[-1]
    return {"D": D, "D_PADDED": _padded(D), "E": E, "E_PADDED": _padded(E)}


def _strided(*tensors: Tensor) -> tuple[Any, ...]:
    """Each tensor [N, H, channels] and its two strides, one after another."""
    return tuple(part for x in tensors for part in (x, x.stride(0), x.stride(1)))


def _dropout(rate: float, seed: int) -> tuple[int, int, float]:
    """(seed, threshold, keep rate). The rate is a multiple of 2⁻¹⁶, and what is kept is scaled by that rate exactly."""
    threshold = min(round(DROPOUT_LEVELS * rate), DROPOUT_LEVELS - 1)
    return seed, threshold, 1.0 - threshold / DROPOUT_LEVELS


def _radius(table_HR: Tensor | None) -> int:
    return 0 if table_HR is None else table_HR.shape[1] // 2


def _distances(rows_NHM: Tensor | None) -> int:
    return 0 if rows_NHM is None else rows_NHM.shape[2]


def _options(
    tiles: Tiles, table: Tensor | None, gate: Tensor | None, rows: Tensor | None, dropout: float
) -> dict[str, int | bool]:
    assert gate is None or table is not None, "a gate without a table multiplies nothing"
    assert table is None or rows is None
    return {
        "TILE_I": tiles.rows,
        "TILE_J": tiles.keys,
        "HAS_TABLE": table is not None,
        "HAS_GATE": gate is not None,
        "HAS_ROWS": rows is not None,
        "HAS_DROPOUT": dropout > 0,
        "num_warps": tiles.warps,
        # What rows have at each distance is as large as the scores: loads of it that wait would fill the shared memory.
        "num_stages": tiles.stages if rows is None else 1,
        "enable_fp_fusion": True,
    }


def _unit_stride(x: Tensor) -> Tensor:
    """x, copied only where its channels do not follow each other: an expanded gradient, say."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
