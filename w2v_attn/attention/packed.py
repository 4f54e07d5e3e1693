"""Steps (2) to (5) for packed recordings, in inference: each recording attends only itself, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from w2v_attn.attention.backends import select
from w2v_attn.attention.backends.tiled import FASTER_THRESHOLD
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import BiasFn, attend_rows, merge_heads, row_scores, split_heads
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.ops import gemm
from w2v_attn.ops.gemm import is_heads_matmul_supported, prefers_mkl
from w2v_attn.ops.numerics import softmax_dtype

# oneDNN's blocks of channels, and the frames from which one call for all heads is faster than the sdpa kernel.
BLOCK, SHORT_THRESHOLD = 16, 128
# A tile of a long recording: 8 MB of scores, large enough for fast products.
TILE_ROWS, TILE_KEYS = 1024, 2048
# Rows of a sliding window at once: few compared to the window, so that little of a tile is masked.
WINDOW_ROWS = 256


def attend_packed(
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
    """Return the concatenated heads of each recording, [ΣT, H·E]. Not differentiable.

    Args:
        q: Queries [ΣT, H·D].
        k: Keys [ΣT, H·D].
        v: Values [ΣT, H·E].
        lengths: Frames of each recording.
        num_heads: H.
        scale: Factor on the scores.
        backend: Name of the backend, or `auto`.
        positions: Relative positions of all frames.
    """
    q, k, v = (split_heads(x[None], num_heads) for x in (q, k, v))
    mask = AttentionMask(lengths=tuple(lengths), positions=positions)
    varlen_backend = select.select_varlen(backend, q, v, mask, dropout=0.0, needs_bias_grad=False)
    if varlen_backend is not None:
        return merge_heads(varlen_backend.forward(q, k, v, mask, scale=scale, dropout=0.0)[0])[0]
    outputs = []
    for part in mask.recording_slices:
        q_one, k_one, v_one = (x[:, :, part] for x in (q, k, v))
        mask_one = mask.slice_frames(part)
        if backend == "auto" and _short(q_one, v_one):
            outputs.append(_all_heads(q_one, k_one, v_one, scale, mask_one.positions))
            continue
        chosen = select.select_backend(backend, q_one, v_one, mask_one, dropout=0.0, needs_bias_grad=False)
        o, _, _ = chosen.forward(q_one, k_one, v_one, mask_one, scale=scale, dropout=0.0)
        outputs.append(merge_heads(o)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _short(q: Tensor, v: Tensor) -> bool:
    """Return whether `_all_heads` is the fastest for a recording: a short one, but not a very short one."""
    shapes = q.shape[-1] % BLOCK == 0 and v.shape[-1] % BLOCK == 0
    length = SHORT_THRESHOLD <= q.shape[2] < FASTER_THRESHOLD
    dtypes = {softmax_dtype(q), v.dtype}
    if q.device.type != "cpu" or prefers_mkl(q):
        return False
    return shapes and length and all(is_heads_matmul_supported(dtype) for dtype in dtypes)


def _all_heads(q: Tensor, k: Tensor, v: Tensor, scale: float, positions: RelativePositions | None) -> Tensor:
    """Return the concatenated heads of one recording, [T, H·E], with one product for all heads in steps (2) and (5).

    q, k: [1, H, T, D]; v: [1, H, T, E]. Scores and softmax are in float32 at least, the attention weights then in the
    dtype of the values.
    """
    _, H, T, D = q.shape
    padded, wide = -(-T // BLOCK) * BLOCK, softmax_dtype(q)
    keys, values = k.new_zeros(H, padded, D, dtype=wide), v.new_zeros(H, v.shape[-1], padded)
    keys[:, :T] = k[0]
    values[..., :T] = v[0].mT
    # Keys that pad the last block are masked.
    end_bias = q.new_zeros(H, padded, dtype=wide)
    end_bias[:, T:] = -torch.inf
    s = gemm.heads_matmul_nt(merge_heads(q)[0].to(wide) * scale, keys, end_bias.flatten())  # (2)
    s = s.view(T, H, padded)
    if positions is not None:
        positions.add_to_scores(s[..., :T].transpose(0, 1), 0, slice(0, H), slice(0, T), slice(0, T))
    p = torch.softmax(s, -1, out=s).to(v.dtype)  # (3)
    return gemm.heads_matmul_nt(p.view(T, H * padded), values)  # (5)


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
    """Return the concatenated heads of some rows of a recording, [I, H·E], with a sliding window of keys.

    Args:
        q: Queries [I, H·D].
        k: Keys [K, H·D].
        v: Values [K, H·E].
        num_heads: H.
        scale: Factor on the scores.
        first_row: Frame of the first query.
        first_key: Frame of the first key.
        reach: A query attends the keys at most this many frames away.
        positions: Relative positions of these rows.
    """
    outputs = []
    for begin in range(0, len(q), WINDOW_ROWS):
        end = min(begin + WINDOW_ROWS, len(q))
        row, last = first_row + begin, first_row + end - 1
        keys = slice(max(row - reach - first_key, 0), min(last + reach + 1 - first_key, len(k)))
        distance = torch.arange(first_key + keys.start, first_key + keys.stop, device=q.device) - torch.arange(
            row, last + 1, device=q.device
        ).unsqueeze(-1)
        in_window = (distance.abs() <= reach)[None]
        bias = _RowBias(positions, slice(begin, end), first_key + keys.start - first_row)
        outputs.append(_rows(q[begin:end], k[keys], v[keys], num_heads, scale, in_window, bias))
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
    """Return the concatenated heads of some rows of a recording, [I, H·E], which attend all its keys.

    It runs in tiles of rows and keys, so that memory depends on neither: each tile of keys has its own softmax, and the
    outputs of tiles are averaged with the weights softmax(L) over tiles. On Intel processors the platform's kernel,
    which does the same, is faster.

    Args:
        q: Queries [I, H·D].
        k: Keys [H, T, D], contiguous per head: they are read once for every few rows, a tenth faster than from
            concatenated heads.
        v: Values [H, T, E], likewise.
        num_heads: H.
        scale: Factor on the scores.
        first_row: Frame of the first query.
        positions: Relative positions of these rows.
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
            attended = []
            for number, (k_part, v_part) in enumerate(zip(keys, values, strict=True)):
                bias = _RowBias(positions, rows, number * TILE_KEYS - first_row)
                attended.append(_attend_keys(q_part[None], k_part, v_part, bias.bias_fn(head, k_part.shape[1])))
            shares = torch.cat([lse for _, lse in attended]).softmax(0)
            tiles.append((shares * torch.cat([o for o, _ in attended])).sum(0))
        heads.append(torch.cat(tiles))
    return torch.cat(heads, -1).to(v.dtype)


@dataclass(frozen=True)
class _RowBias:
    """The position biases of some rows.

    rows: relative to the first frame of the positions. first_key: the first key, relative to the same frame.
    """

    positions: RelativePositions | None
    rows: slice
    first_key: int

    def bias_fn(self, head: int, num_keys: int) -> BiasFn | None:
        """Return a function that adds the biases to the scores of one head, [1, I, keys]; None without positions."""
        if self.positions is None:
            return None
        keys = slice(self.first_key, self.first_key + num_keys)
        heads = slice(head, head + 1)
        return partial(self.positions.add_to_scores, recording=0, heads=heads, rows=self.rows, keys=keys)


def _attend_keys(scaled_q: Tensor, k: Tensor, v: Tensor, bias_fn: BiasFn | None) -> tuple[Tensor, Tensor]:
    """Return O of some rows that attend only some keys, [1, I, E], and their L = log Σ exp S, [1, I, 1]."""
    s = row_scores(scaled_q, k, None, None, bias_fn)
    largest = s.amax(-1, keepdim=True)
    p = torch.softmax(s, -1, out=s)
    lse = largest - p.amax(-1, keepdim=True).log()  # P = exp(S − L), also for the largest S
    return gemm.bmm(p, v), lse


def _rows(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, allowed: Tensor, bias: _RowBias) -> Tensor:
    """Return the concatenated heads of one tile, [I, H·E], computed one head at a time."""
    dtype, heads = softmax_dtype(q), []
    for head, (q_ID, k_TD, v_TE) in enumerate(zip(*(x.chunk(num_heads, -1) for x in (q, k, v)), strict=True)):
        q_1ID, k_1TD, v_1TE = (x.to(dtype).contiguous()[None] for x in (q_ID, k_TD, v_TE))
        bias_fn = bias.bias_fn(head, len(k))
        heads.append(attend_rows(q_1ID, k_1TD, v_1TE, scale=scale, allowed_HIT=allowed, bias_fn=bias_fn)[0])
    return torch.cat(heads, -1).to(v.dtype)
