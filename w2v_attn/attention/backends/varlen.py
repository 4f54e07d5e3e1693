"""The varlen backends: all packed recordings of a batch in one launch, on accelerators.

`flash` is torch's flash attention with cu_seqlens, for half precisions; `triton` is our own kernel, also for float32
and for GPUs that flash attention does not support. Both have dropout. They implement `select.Backend`, with q, k and v
of [1, H, ΣT, D] and the lengths in the mask. On a CPU a loop over recordings is as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from w2v_attn.attention.backends import sdpa, triton_launch
from w2v_attn.attention.masks import AttentionMask, BiasTensors

aten = torch.ops.aten

# Distinct distances of vectors in the Triton backend, which stores a number for each of them, row and head: for 2048
# frames and 16 heads half a gigabyte.
MAX_DISTANCES = 4096


@dataclass(frozen=True)
class VarlenContext:
    """What the backward needs besides the tensors of the interface."""

    cu_seqlens: Tensor
    max_frames: int
    seed: int = 0
    random_state: tuple[Tensor, Tensor] | None = None


def make_cu_seqlens(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the start of each packed recording, and the end of the last one, int32 [B + 1]."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


# ------------------------------------------------------------------------------------------------------ flash


def flash_unsupported_reason(
    q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_bias_grad: bool
) -> str | None:
    """Return why torch's flash attention does not support this request; None if it does."""
    if mask.restricts_keys or mask.causal or mask.positions is not None:
        return "flash attention with cu_seqlens has no masks and no position biases"
    if dropout >= 1:
        return sdpa.ALL_DROPPED
    if q.device.type != "cuda" or q.dtype not in sdpa.CUDA_FLASH_DTYPES:
        return f"flash attention needs a GPU and half precision, got {q.device.type} and {q.dtype}"
    if torch.cuda.get_device_capability(q.device) < sdpa.MIN_FLASH_CAPABILITY:
        name = torch.cuda.get_device_name(q.device)
        return f"flash attention needs a GPU of compute capability 8.0 or newer, got {name}"
    if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > sdpa.MAX_FLASH_CHANNELS:
        return f"flash attention needs 8·n channels per head in keys and values, got {q.shape[-1]} and {v.shape[-1]}"
    return None


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor, VarlenContext]:
    """See `select.Forward`."""
    assert mask.lengths is not None
    cu_seqlens, longest = make_cu_seqlens(mask.lengths, q.device), max(mask.lengths)
    q, k, v = (sdpa.unit_stride(_to_packed(x)) for x in (q, k, v))
    o, lse, seed, offset, _ = aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, dropout, False, False, scale=scale
    )
    return _from_packed(o), lse[None], VarlenContext(cu_seqlens, longest, random_state=(seed, offset))


def flash_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, context: VarlenContext, mask: AttentionMask,
    *, scale: float, dropout: float, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, BiasTensors]:  # fmt: skip
    """See `select.Backward`."""
    do, q, k, v, o = (sdpa.unit_stride(_to_packed(x)) for x in (do, q, k, v, o))
    assert context.random_state is not None
    cu_seqlens, longest = context.cu_seqlens, context.max_frames
    gradients = aten._flash_attention_backward(
        do.contiguous(), q, k, v, o, lse[0], cu_seqlens, cu_seqlens, longest, longest, dropout, False,
        *context.random_state, scale=scale,
    )  # fmt: skip
    dq, dk, dv = (_from_packed(gradient) for gradient in gradients)
    return dq, dk, dv, BiasTensors()


# ----------------------------------------------------------------------------------------------------- triton


def triton_unsupported_reason(
    q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_bias_grad: bool
) -> str | None:
    """Return why our Triton kernels do not support this request; None if they do."""
    if dropout >= 1:
        return sdpa.ALL_DROPPED
    if mask.restricts_keys or mask.causal:
        return "the Triton backend has no masks except the lengths of recordings"
    positions = mask.positions
    if positions is not None and positions.table is not None and not positions.is_symmetric_table:
        return "the Triton backend needs a table with as many distances before a query as after it"
    if positions is not None and positions.vectors is not None and positions.num_distances > MAX_DISTANCES:
        return (
            f"the Triton backend has position vectors for at most {MAX_DISTANCES} distances, got "
            f"{positions.num_distances}"
        )
    return triton_launch.kernels_unsupported_reason(_to_packed(q), _to_packed(v))


def triton_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor, VarlenContext]:
    """See `select.Forward`. If the mask has no lengths, each row of the batch is a recording."""
    lengths = (q.shape[2],) * q.shape[0] if mask.lengths is None else mask.lengths
    seed = int(torch.randint(1 << 62, ())) if dropout > 0 else 0  # from torch's own generator, as in `tiled`
    context = VarlenContext(make_cu_seqlens(lengths, q.device), max(lengths), seed)
    o, lse = triton_launch.forward_packed(
        _to_packed(q), _to_packed(k), _to_packed(v), context.cu_seqlens,
        max_frames=context.max_frames, scale=scale, dropout=dropout, seed=seed, **_positions(mask),
    )  # fmt: skip
    return _from_packed(o, q.shape[0]), lse[None], context


def triton_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, context: VarlenContext, mask: AttentionMask,
    *, scale: float, dropout: float, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, BiasTensors]:  # fmt: skip
    """See `select.Backward`."""
    do, q_NHD, k, v, o = (_to_packed(x) for x in (do, q, k, v, o))
    dq, dk, dv, dtable, dgate, drows = triton_launch.backward_packed(
        do, q_NHD, k, v, o, lse[0], context.cu_seqlens,
        max_frames=context.max_frames, scale=scale, dropout=dropout, seed=context.seed, **_positions(mask),
    )  # fmt: skip
    dq, dk, dv = (_from_packed(gradient, q.shape[0]) for gradient in (dq, dk, dv))
    if mask.positions is None:
        return dq, dk, dv, BiasTensors()
    if drows is not None:
        dqueries, dvectors = mask.positions.rows_backward(_from_packed(drows, q.shape[0]))
        return dq, dk, dv, BiasTensors(queries=dqueries, vectors=dvectors)
    if dgate is not None:
        dgate = dgate.unflatten(0, (q.shape[0], -1)).transpose(1, 2)
    return dq, dk, dv, BiasTensors(table=dtable, gate=dgate)


def _positions(mask: AttentionMask) -> dict[str, Any]:
    """Return the kernels' arguments for positions, float32: a symmetric table [H, 2R + 1] and gate [B·T, H], or A."""
    positions = mask.positions
    if positions is None:
        return {}
    if positions.table is None:
        return {"rows_NHM": _to_packed(positions.rows(torch.float32)), "left": positions.left}
    gate = positions.gate
    gate = None if gate is None else gate.transpose(1, 2).flatten(0, 1).float()
    return {"table_HR": positions.table.float(), "gate_NH": gate}


def _to_packed(x: Tensor) -> Tensor:
    """Return [B, H, T, D] as [B·T, H, D]; a view if the memory layout is [B, T, H, D], as in our layer."""
    return x.transpose(1, 2).flatten(0, 1)


def _from_packed(x: Tensor, num_rows: Any = 1) -> Tensor:
    """Return [B·T, H, D] as [B, H, T, D]."""
    return x.unflatten(0, (num_rows, -1)).transpose(1, 2)
