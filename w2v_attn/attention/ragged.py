"""The attention core over recordings that lie side by side: each attends itself alone, and nothing is padded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.attention import cores, products
from w2v_attn.attention.explicit import FASTER_FROM
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import attend_rows, masked_scores, merge_heads, softmax_dtype, split_heads
from w2v_attn.attention.products import serves_heads

# oneDNN's blocks of channels, and the frames from which one call for all heads is faster than the fused kernel.
BLOCK, SHORT_FROM = 16, 128
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
) -> Tensor:
    """Steps (2) to (5) of each recording: [ΣT, H·E]. q, k: [ΣT, H·D]; v: [ΣT, H·E]. Not differentiable."""
    q, k, v = (split_heads(x[None], num_heads) for x in (q, k, v))
    mask = AttentionMask(lengths=tuple(lengths))
    together = cores.choose_together(backend, q, v, mask, dropout=0.0)
    if together is not None:
        return merge_heads(together.forward(q, k, v, mask, scale=scale, dropout=0.0)[0])[0]
    outputs = []
    for q_one, k_one, v_one in zip(*(x.split(list(lengths), 2) for x in (q, k, v)), strict=True):
        if backend == "auto" and _short(q_one, v_one):
            outputs.append(_all_heads(q_one, k_one, v_one, scale))
            continue
        core = cores.choose(backend, q_one, v_one, NO_MASK, dropout=0.0, needs_bias=False)
        o, _, _ = core.forward(q_one, k_one, v_one, NO_MASK, scale=scale, dropout=0.0)
        outputs.append(merge_heads(o)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _short(q: Tensor, v: Tensor) -> bool:
    """Whether a recording is one that all heads together are fastest for: short, but not next to nothing."""
    shapes = q.shape[-1] % BLOCK == 0 and v.shape[-1] % BLOCK == 0
    length = SHORT_FROM <= q.shape[2] < FASTER_FROM
    dtypes = {softmax_dtype(q), v.dtype}
    return shapes and length and q.device.type == "cpu" and all(serves_heads(dtype) for dtype in dtypes)


def _all_heads(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
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
    s = products.heads_times_transposed(merge_heads(q)[0].to(wide) * scale, keys, nobody.flatten())  # (2)
    p = torch.softmax(s.view(T, H, padded), -1, out=s.view(T, H, padded)).to(v.dtype)  # (3)
    return products.heads_times_transposed(p.view(T, H * padded), values)  # (5)


def attend_window(
    q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float, first_row: int, first_key: int, reach: int
) -> Tensor:
    """Steps (2) to (5) for some rows of a recording, each attending the keys at most `reach` frames away: [I, H·E].

    q: [I, H·D], whose first row is frame `first_row`. k: [K, H·D] and v: [K, H·E], whose first is frame `first_key`.
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
        outputs.append(_rows(q[begin:end], k[keys], v[keys], num_heads, scale, near))
    return torch.cat(outputs)


def attend_all(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float) -> Tensor:
    """Steps (2) to (5) for some rows of a recording, q [I, H·D], against all its keys and values: [I, H·E].

    In tiles of rows and keys, so that neither matters for memory: each tile of keys gives its own softmax, and their
    outputs are averaged by what the exponentials of each add up to, softmax(L) over tiles.
    """
    dtype, heads = softmax_dtype(q), []
    for q_ID, k_TD, v_TE in zip(*(x.chunk(num_heads, -1) for x in (q, k, v)), strict=True):
        keys = [part.to(dtype).contiguous()[None] for part in k_TD.split(TILE_KEYS)]
        values = [part.to(dtype).contiguous()[None] for part in v_TE.split(TILE_KEYS)]
        tiles = []
        for q_part in (q_ID.to(dtype) * scale).split(TILE_ROWS):
            found = [_attend_keys(q_part[None], *pair) for pair in zip(keys, values, strict=True)]
            weights = torch.cat([lse for _, lse in found]).softmax(0)
            tiles.append((weights * torch.cat([o for o, _ in found])).sum(0))
        heads.append(torch.cat(tiles))
    return torch.cat(heads, -1).to(v.dtype)


def _attend_keys(scaled_q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """O of some rows against some keys alone, [1, I, E], and L = log Σ exp S of them, [1, I, 1]."""
    s = masked_scores(scaled_q, k, None, None)
    largest = s.amax(-1, keepdim=True)
    p = torch.softmax(s, -1, out=s)
    lse = largest - p.amax(-1, keepdim=True).log()  # P = exp(S − L), also at the largest
    return products.times(p, v), lse


def _rows(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, allowed: Tensor) -> Tensor:
    """One tile, a head at a time: [I, H·E]."""
    dtype, heads = softmax_dtype(q), []
    for q_ID, k_TD, v_TE in zip(*(x.chunk(num_heads, -1) for x in (q, k, v)), strict=True):
        q_1ID, k_1TD, v_1TE = (x.to(dtype).contiguous()[None] for x in (q_ID, k_TD, v_TE))
        heads.append(attend_rows(q_1ID, k_1TD, v_1TE, scale=scale, allowed_HIT=allowed)[0])
    return torch.cat(heads, -1).to(v.dtype)
