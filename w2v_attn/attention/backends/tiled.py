"""The tiled backend: the equations of `mathematics.py` over all tiles, in memory linear in the number of frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.attention.masks import AttentionMask, BiasTensors
from w2v_attn.attention.mathematics import attend_rows, attend_rows_backward, row_sums
from w2v_attn.attention.relative import slice_length
from w2v_attn.ops.gemm import MIN_WORK, prefers_mkl, prefers_onednn
from w2v_attn.ops.numerics import keep_rate, softmax_dtype

# Scores in one tile. On a CPU a tile should fit the caches; an accelerator is fastest with few, large launches.
CPU_TILE = 1 << 20
ACCELERATOR_TILE = 1 << 26
# With fewer rows products are slow: in long recordings a tile then grows with T, which is still linear.
MIN_ROWS = 64

KEEP_LEVELS = 1 << 8

# Frames from which tiles with oneDNN's products are faster than the sdpa kernel, which calls MKL.
FASTER_THRESHOLD = 512


@dataclass(frozen=True)
class TiledContext:
    """What the backward needs besides tensors: the seed of dropout, and the tiling, because masks are drawn per tile.

    heads, rows: heads and rows of a tile.
    """

    heads: int
    rows: int
    seed: int


@dataclass(frozen=True)
class Tile:
    """A tile of scores: some rows of some heads of one recording, and its first `num_keys` keys."""

    recording: int
    heads: slice
    rows: slice
    num_keys: int


def unsupported_reason(
    q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_bias_grad: bool
) -> str | None:
    """Return None: this backend supports every request."""
    return None


def is_faster(q: Tensor, mask: AttentionMask) -> bool:
    """Return whether this backend is the fastest for queries like these, [B, H, T, D]."""
    # The sdpa kernel needs all T² position biases; tiles compute them as they go.
    products_are_faster = prefers_onednn(q) or (prefers_mkl(q) and mask.positions is not None)
    return q.shape[2] >= FASTER_THRESHOLD and products_are_faster


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, None, TiledContext]:
    """See `select.Forward`. Half precisions are computed in float32, other dtypes in their own."""
    B, H, T, _ = q.shape
    # In memory frames come before heads, so that the concatenated heads of step (6) are a view.
    o = v.new_zeros(B, T, H, v.shape[-1]).transpose(1, 2)
    dtype = softmax_dtype(q)
    q, k, v = (_contiguous(x, dtype) for x in (q, k, v))
    context = _plan(q, dropout)
    dropout_mask = DropoutMask(context.seed, dropout, q.device, dtype)
    for tile in _tiles(mask, B, H, T, context):
        b, heads, rows, keys = tile.recording, tile.heads, tile.rows, slice(0, tile.num_keys)
        bias, allowed = mask.tile(b, heads, rows, tile.num_keys, like=q)
        bias_fn = mask.bias_fn(b, heads, rows, tile.num_keys)
        keep = dropout_mask.draw(slice_length(heads), slice_length(rows), tile.num_keys)
        o[b, heads, rows] = attend_rows(
            q[b, heads, rows],
            k[b, heads, keys],
            v[b, heads, keys],
            scale=scale,
            bias_HIT=bias,
            allowed_HIT=allowed,
            keep_HIT=keep,
            keep_rate=dropout_mask.keep_rate,
            bias_fn=bias_fn,
        )
    return o, None, context


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: None,
    context: TiledContext,
    mask: AttentionMask,
    *,
    scale: float,
    dropout: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, BiasTensors]:
    """See `select.Backward`. The tiles are in the order of the forward, so that the dropout masks are the same."""
    B, H, T, _ = q.shape
    dtype = softmax_dtype(q)
    dropout_mask = DropoutMask(context.seed, dropout, q.device, dtype)
    dq = q.new_zeros(B, T, H, q.shape[-1]).transpose(1, 2)
    q, k, v, do = (_contiguous(x, dtype) for x in (q, k, v, do))
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    dbias_tensors = mask.zeros(needs, dtype)
    delta = row_sums(do, o.to(dtype))
    for tile in _tiles(mask, B, H, T, context):
        b, heads, rows, keys = tile.recording, tile.heads, tile.rows, slice(0, tile.num_keys)
        bias, allowed = mask.tile(b, heads, rows, tile.num_keys, like=q)
        bias_fn = mask.bias_fn(b, heads, rows, tile.num_keys)
        keep = dropout_mask.draw(slice_length(heads), slice_length(rows), tile.num_keys)
        dq[b, heads, rows], ds = attend_rows_backward(
            do[b, heads, rows],
            q[b, heads, rows],
            k[b, heads, keys],
            v[b, heads, keys],
            delta[b, heads, rows],
            scale=scale,
            dk_HTD=dk[b, heads, keys],
            dv_HTE=dv[b, heads, keys],
            bias_HIT=bias,
            allowed_HIT=allowed,
            keep_HIT=keep,
            keep_rate=dropout_mask.keep_rate,
            bias_fn=bias_fn,
        )
        mask.tile_backward(ds, b, heads, rows, dbias_tensors)
    return dq, dk.to(dq.dtype), dv.to(dq.dtype), dbias_tensors


class DropoutMask:
    """Draws the dropout masks of tiles, one after another, from a generator with one seed.

    An entry is dropped if its 8 random bits, a number from 0 to 255, are below 256 p. That is rarely an integer: for
    each row it is rounded up or down at random, by its fraction, so that every entry is dropped with probability p
    exactly. Random bits are the main cost of dropout here, and eight entries per 64-bit number are the cheapest.
    """

    def __init__(self, seed: int, dropout: float, device: torch.device, dtype: torch.dtype):
        self.keep_rate = keep_rate(dropout)
        self._levels = KEEP_LEVELS * dropout
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed) if dropout > 0 else None

    def draw(self, heads: int, rows: int, keys: int) -> Tensor | None:
        """Return R of a tile, [heads, rows, keys]: 1 = kept, 0 = dropped. None if there is no dropout."""
        if self._generator is None:
            return None
        numel = heads * rows * keys
        bits = torch.empty((numel + 7) // 8, dtype=torch.int64, device=self._device)
        bits.random_(-(1 << 63), None, generator=self._generator)
        numbers = bits.view(torch.int8)[:numel].view(heads, rows, keys)  # uniform over −128 … 127
        # Always float32: torch's default dtype would change the random numbers.
        rounding = torch.rand(heads, rows, 1, generator=self._generator, device=self._device, dtype=torch.float32)
        threshold = (self._levels + rounding).floor_().sub_(KEEP_LEVELS // 2)
        # int8 has −128 … 127; only a rate above 255/256 needs 128.
        threshold = threshold.to(torch.int8 if self._levels <= KEEP_LEVELS - 1 else torch.int16)
        keep = torch.empty(numbers.shape, dtype=self._dtype, device=self._device)
        return torch.ge(numbers, threshold, out=keep)


def _plan(q: Tensor, dropout: float) -> TiledContext:
    _, H, T, _ = q.shape
    # From torch's own generator: manual_seed makes it reproducible, and gradient checkpointing restores it.
    seed = int(torch.randint(1 << 62, ())) if dropout > 0 else 0
    if q.device.type == "cpu":
        # oneDNN computes one product per head, on all cores if it is large enough. MKL has batched products, so that a
        # tile of several heads needs fewer calls.
        one_head = prefers_onednn(q) and T * T * q.shape[-1] >= MIN_WORK
        heads = 1 if one_head else max(1, min(H, CPU_TILE // max(1, T * T)))
        budget = CPU_TILE
    else:
        heads = max(1, min(H, ACCELERATOR_TILE // max(1, T * MIN_ROWS)))
        budget = ACCELERATOR_TILE
    rows = max(MIN_ROWS, budget // max(1, heads * T))
    return TiledContext(heads, min(rows, max(T, 1)), seed)


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a dtype, on a CPU with the frames of each head contiguous: tiles read them many times."""
    return x.to(dtype).contiguous() if x.device.type == "cpu" else x.to(dtype)


def _tiles(mask: AttentionMask, B: int, H: int, T: int, context: TiledContext) -> Iterator[Tile]:
    """Yield all tiles in a fixed order; keys that no row may attend are left out."""
    for recording, key_count in enumerate(mask.key_counts(B, T)):
        for head in range(0, H, context.heads):
            heads = slice(head, min(head + context.heads, H))
            for row in range(0, T, context.rows):
                rows = slice(row, min(row + context.rows, T))
                num_keys = min(key_count, rows.stop) if mask.causal else key_count
                if num_keys:
                    yield Tile(recording, heads, rows, num_keys)
