"""The attention core over recordings that lie side by side: each attends itself alone, and nothing is padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from w2v_attn.attention.backends import select
from w2v_attn.attention.backends.tiled import FASTER_THRESHOLD
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import Adder, attend_rows, masked_scores, merge_heads, split_heads
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.ops import gemm
from w2v_attn.ops.gemm import prefers_mkl, serves_heads
from w2v_attn.ops.numerics import softmax_dtype

# oneDNN's blocks of channels, and the frames from which one call for all heads is faster than the sdpa kernel.
BLOCK, SHORT_THRESHOLD = 16, 128
# A tile of a long recording: 8 MB of scores, thick enough for its products.
TILE_ROWS, TILE_KEYS = 1024, 2048
# Rows of a window at once: few beside the window, so that little of a tile is cut off.
WINDOW_ROWS = 256


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    *,
    num_heads: int,
    scale: float,
    backend: str = "auto",
    positions: RelativePositions | None = None,
) -> Tensor:
    """Steps (2) to (5) of each recording: [ΣT, H·E]. q, k: [ΣT, H·D]; v: [ΣT, H·E]. Not differentiable.

    positions: what relative positions add to the scores, for all frames.
    """
    q, k, v = (split_heads(x[None], num_heads) for x in (q, k, v))
    mask = AttentionMask(lengths=tuple(lengths), positions=positions)
    together = select.select_varlen(backend, q, v, mask, dropout=0.0, needs_added=False)
    if together is not None:
        return merge_heads(together.forward(q, k, v, mask, scale=scale, dropout=0.0)[0])[0]
    outputs = []
    for part in mask.recordings:
        q_one, k_one, v_one = (x[:, :, part] for x in (q, k, v))
        mask_one = mask.frames(part)
        if backend == "auto" and _short(q_one, v_one):
            outputs.append(_all_heads(q_one, k_one, v_one, scale, mask_one.positions))
            continue
        chosen = select.select(backend, q_one, v_one, mask_one, dropout=0.0, needs_added=False)
        o, _, _ = chosen.forward(q_one, k_one, v_one, mask_one, scale=scale, dropout=0.0)
        outputs.append(merge_heads(o)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _short(q: Tensor, v: Tensor) -> bool:
    """Whether a recording is one that all heads together are fastest for: short, but not next to nothing."""
    shapes = q.shape[-1] % BLOCK == 0 and v.shape[-1] % BLOCK == 0
    length = SHORT_THRESHOLD <= q.shape[2] < FASTER_THRESHOLD
    dtypes = {softmax_dtype(q), v.dtype}
    if q.device.type != "cpu" or prefers_mkl(q):
        return False
    return shapes and length and all(serves_heads(dtype) for dtype in dtypes)


def _all_heads(q: Tensor, k: Tensor, v: Tensor, scale: float, positions: RelativePositions | None) -> Tensor:
    """Steps (2) to (5) of one recording, [1, H, T, D], with one product for all heads in each: [T, H·E].

    Scores and softmax are in float32 at least; the probabilities meet the values in their dtype.
    """
    _, H, T, D = q.shape
    padded, wide = -(-T // BLOCK) * BLOCK, softmax_dtype(q)
    keys, values = k.new_zeros(H, padded, D, dtype=wide), v.new_zeros(H, v.shape[-1], padded)
    keys[:, :T] = k[0]
    values[..., :T] = v[0].mT
    # Keys that fill up the last block are attended by nobody.
    nobody = q.new_zeros(H, padded, dtype=wide)
    nobody[:, T:] = -torch.inf
    s = gemm.heads_times_transposed(merge_heads(q)[0].to(wide) * scale, keys, nobody.flatten())  # (2)
    s = s.view(T, H, padded)
    if positions is not None:
        positions.add_to(s[..., :T].transpose(0, 1), 0, slice(0, H), slice(0, T), slice(0, T))
    p = torch.softmax(s, -1, out=s).to(v.dtype)  # (3)
    return gemm.heads_times_transposed(p.view(T, H * padded), values)  # (5)


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    scale: float,
    first_row: int,
    first_key: int,
    reach: int,
    positions: RelativePositions | None = None,
) -> Tensor:
    """Steps (2) to (5) for some rows of a recording, each attending the keys at most `reach` frames away: [I, H·E].

    q: [I, H·D], whose first row is frame `first_row`. k: [K, H·D] and v: [K, H·E], whose first is frame `first_key`.
    positions: what relative positions add to the scores of these rows.
    """
    outputs = []
    for begin in range(0, len(q), WINDOW_ROWS):
        end = min(begin + WINDOW_ROWS, len(q))
        row, last = first_row + begin, first_row + end - 1
        keys = slice(max(row - reach - first_key, 0), min(last + reach + 1 - first_key, len(k)))
        distance = torch.arange(first_key + keys.start, first_key + keys.stop, device=q.device) - torch.arange(
            row, last + 1, device=q.device
        ).unsqueeze(-1)
        near = (distance.abs() <= reach)[None]
        added = _RowPositions(positions, slice(begin, end), first_key + keys.start - first_row)
        outputs.append(_rows(q[begin:end], k[keys], v[keys], num_heads, scale, near, added))
    return torch.cat(outputs)


def attend_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    scale: float,
    first_row: int = 0,
    positions: RelativePositions | None = None,
) -> Tensor:
    """Steps (2) to (5) for some rows of a recording, q [I, H·D], against all its keys and values: [I, H·E].

    k: [H, T, D]. v: [H, T, E]. Of long recordings each head's lie side by side: they are read once for every few rows,
    a tenth faster than from between those of other heads.
    first_row: the frame of the first row. positions: what relative positions add to the scores of these rows.

    In tiles of rows and keys, so that neither matters for memory: each tile of keys gives its own softmax, and their
    outputs are averaged by what the exponentials of each add up to, softmax(L) over tiles. The platform's kernel does
    that too, faster where MKL is at home.
    """
    if positions is None and prefers_mkl(q) and k.shape == v.shape:
        q_1HID = split_heads(q[None], num_heads)
        return merge_heads(select.SDPA.forward(q_1HID, k[None], v[None], NO_MASK, scale=scale, dropout=0.0)[0])[0]
    dtype, heads = softmax_dtype(q), []
    for head, (q_ID, k_TD, v_TE) in enumerate(zip(q.chunk(num_heads, -1), k, v, strict=True)):
        keys = [part.to(dtype).contiguous()[None] for part in k_TD.split(TILE_KEYS)]
        values = [part.to(dtype).contiguous()[None] for part in v_TE.split(TILE_KEYS)]
        tiles = []
        for row in range(0, len(q), TILE_ROWS):
            q_part = q_ID[row : row + TILE_ROWS].to(dtype) * scale
            rows = slice(row, row + len(q_part))
            found = []
            for number, (k_part, v_part) in enumerate(zip(keys, values, strict=True)):
                added = _RowPositions(positions, rows, number * TILE_KEYS - first_row)
                found.append(_attend_keys(q_part[None], k_part, v_part, added.adder(head, k_part.shape[1])))
            weights = torch.cat([lse for _, lse in found]).softmax(0)
            tiles.append((weights * torch.cat([o for o, _ in found])).sum(0))
        heads.append(torch.cat(tiles))
    return torch.cat(heads, -1).to(v.dtype)


@dataclass(frozen=True)
class _RowPositions:
    """What positions add to the scores of some rows.

    rows: counted from where the positions begin. first_key: of the keys, counted from there too.
    """

    positions: RelativePositions | None
    rows: slice
    first_key: int

    def adder(self, head: int, num_keys: int) -> Adder | None:
        """Adds it to the scores of one head, [1, I, keys]."""
        if self.positions is None:
            return None
        keys = slice(self.first_key, self.first_key + num_keys)
        heads = slice(head, head + 1)
        return partial(self.positions.add_to, recording=0, heads=heads, rows=self.rows, keys=keys)


def _attend_keys(scaled_q: Tensor, k: Tensor, v: Tensor, add: Adder | None) -> tuple[Tensor, Tensor]:
    """O of some rows against some keys alone, [1, I, E], and L = log Σ exp S of them, [1, I, 1]."""
    s = masked_scores(scaled_q, k, None, None, add)
    largest = s.amax(-1, keepdim=True)
    p = torch.softmax(s, -1, out=s)
    lse = largest - p.amax(-1, keepdim=True).log()  # P = exp(S − L), also at the largest
    return gemm.times(p, v), lse


def _rows(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, allowed: Tensor, added: _RowPositions
) -> Tensor:
    """One tile, a head at a time: [I, H·E]."""
    dtype, heads = softmax_dtype(q), []
    for head, (q_ID, k_TD, v_TE) in enumerate(zip(*(x.chunk(num_heads, -1) for x in (q, k, v)), strict=True)):
        q_1ID, k_1TD, v_1TE = (x.to(dtype).contiguous()[None] for x in (q_ID, k_TD, v_TE))
        add = added.adder(head, len(k))
        heads.append(attend_rows(q_1ID, k_1TD, v_1TE, scale=scale, allowed_HIT=allowed, add=add)[0])
    return torch.cat(heads, -1).to(v.dtype)
