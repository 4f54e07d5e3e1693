"""Cores that take all recordings of a batch in one launch, their frames side by side: for accelerators.

`flash` is the platform's flash attention over offsets, for half precisions; `triton` is our own kernel, for float32 as
well, and on GPUs that the other does not serve. Both have dropout. They have the interface of `select.Backend`, with q,
k and v of [1, H, ΣT, D] and the lengths in the mask. On a CPU a loop over recordings is as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from w2v_attn.attention.backends import sdpa, triton
from w2v_attn.attention.masks import Added, AttentionMask

aten = torch.ops.aten

# Distances that vectors may tell apart in the Triton backend, which holds a number for each, row and head: those of
# 2048 frames, with 16 heads half a gigabyte.
MAX_DISTANCES = 4096


@dataclass(frozen=True)
class Memory:
    """What backward needs besides the tensors of the interface."""

    offsets: Tensor
    max_frames: int
    seed: int = 0
    random_state: tuple[Tensor, Tensor] | None = None


def offsets_of(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 [B + 1]: where each recording begins, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


# ------------------------------------------------------------------------------------------------------ flash


def unsupported_reason_flash(
    q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool
) -> str | None:
    """What of this request the platform's flash attention cannot do; None when it can do it all."""
    if mask.forbids or mask.causal or mask.positions is not None:
        return "flash attention over offsets has no masks, and nothing is added to its scores"
    if dropout >= 1:
        return sdpa.ALL_DROPPED
    if q.device.type != "cuda" or q.dtype not in sdpa.CUDA_FLASH_DTYPES:
        return f"flash attention needs a GPU and half precision, got {q.device.type} and {q.dtype}"
    if torch.cuda.get_device_capability(q.device) < sdpa.CUDA_FLASH_CAPABILITY:
        return "this GPU is too old for flash attention"
    if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > sdpa.CUDA_FLASH_CHANNELS:
        return f"flash attention needs 8·n channels a head in keys and values, got {q.shape[-1]} and {v.shape[-1]}"
    return None


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor, Memory]:
    """See `select.Forward`."""
    assert mask.lengths is not None
    offsets, longest = offsets_of(mask.lengths, q.device), max(mask.lengths)
    q, k, v = (sdpa.unit_stride(_frames_first(x)) for x in (q, k, v))
    o, lse, seed, offset, _ = aten._flash_attention_forward(
        q, k, v, offsets, offsets, longest, longest, dropout, False, False, scale=scale
    )
    return _heads_first(o), lse[None], Memory(offsets, longest, random_state=(seed, offset))


def flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, memory: Memory, mask: AttentionMask,
    *, scale: float, dropout: float, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Added]:  # fmt: skip
    """See `select.Backward`."""
    do, q, k, v, o = (sdpa.unit_stride(_frames_first(x)) for x in (do, q, k, v, o))
    assert memory.random_state is not None
    offsets, longest = memory.offsets, memory.max_frames
    gradients = aten._flash_attention_backward(
        do.contiguous(), q, k, v, o, lse[0], offsets, offsets, longest, longest, dropout, False, *memory.random_state,
        scale=scale,
    )  # fmt: skip
    dq, dk, dv = (_heads_first(gradient) for gradient in gradients)
    return dq, dk, dv, Added()


# ----------------------------------------------------------------------------------------------------- triton


def unsupported_reason_triton(
    q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool
) -> str | None:
    """What of this request our Triton kernels cannot do; None when they can do it all."""
    if dropout >= 1:
        return sdpa.ALL_DROPPED
    if mask.forbids or mask.causal:
        return "the Triton backend has no masks but the ends of recordings"
    positions = mask.positions
    if positions is not None and positions.table is not None and not positions.is_symmetric_table:
        return "the Triton backend wants a table that reaches as far before a query as after it"
    if positions is not None and positions.vectors is not None and positions.num_distances > MAX_DISTANCES:
        return (
            f"the Triton backend holds what each row has at each distance, and {positions.num_distances} are too many"
        )
    return triton.unsupported_reason(_frames_first(q), _frames_first(v))


def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor, Memory]:
    """See `select.Forward`; without lengths in the mask, each row of the batch is a recording."""
    lengths = (q.shape[2],) * q.shape[0] if mask.lengths is None else mask.lengths
    seed = int(torch.randint(1 << 62, ())) if dropout > 0 else 0  # from torch's own generator, as in `tiled`
    memory = Memory(offsets_of(lengths, q.device), max(lengths), seed)
    o, lse = triton.forward(
        _frames_first(q), _frames_first(k), _frames_first(v), memory.offsets,
        max_frames=memory.max_frames, scale=scale, dropout=dropout, seed=seed, **_positions(mask),
    )  # fmt: skip
    return _heads_first(o, q.shape[0]), lse[None], memory


def triton_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, memory: Memory, mask: AttentionMask,
    *, scale: float, dropout: float, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Added]:  # fmt: skip
    """See `select.Backward`."""
    do, q_NHD, k, v, o = (_frames_first(x) for x in (do, q, k, v, o))
    dq, dk, dv, dtable, dgate, drows = triton.backward(
        do, q_NHD, k, v, o, lse[0], memory.offsets,
        max_frames=memory.max_frames, scale=scale, dropout=dropout, seed=memory.seed, **_positions(mask),
    )  # fmt: skip
    dq, dk, dv = (_heads_first(gradient, q.shape[0]) for gradient in (dq, dk, dv))
    if mask.positions is None:
        return dq, dk, dv, Added()
    if drows is not None:
        dqueries, dvectors = mask.positions.rows_backward(_heads_first(drows, q.shape[0]))
        return dq, dk, dv, Added(queries=dqueries, vectors=dvectors)
    if dgate is not None:
        dgate = dgate.unflatten(0, (q.shape[0], -1)).transpose(1, 2)
    return dq, dk, dv, Added(table=dtable, gate=dgate)


def _positions(mask: AttentionMask) -> dict[str, Any]:
    """What positions add as the kernels take it, float32: a symmetric table [H, 2R + 1] and gates [B·T, H], or A."""
    positions = mask.positions
    if positions is None:
        return {}
    if positions.table is None:
        return {"rows_NHM": _frames_first(positions.rows(torch.float32)), "left": positions.left}
    gate = positions.gate
    gate = None if gate is None else gate.transpose(1, 2).flatten(0, 1).float()
    return {"table_HR": positions.table.float(), "gate_NH": gate}


def _frames_first(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B·T, H, D]; a view where frames come first in memory, as they do in our layer."""
    return x.transpose(1, 2).flatten(0, 1)


def _heads_first(x: Tensor, num_rows: Any = 1) -> Tensor:
    """[B·T, H, D] -> [B, H, T, D]."""
    return x.unflatten(0, (num_rows, -1)).transpose(1, 2)
