"""The tiled backend: the mathematics over all tiles, in memory linear in the number of frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.attention.masks import Added, AttentionMask
from w2v_attn.attention.mathematics import attend_rows, attend_rows_backward, row_sums
from w2v_attn.ops.gemm import MIN_WORK, prefers_mkl, serves
from w2v_attn.ops.numerics import keep_rate, softmax_dtype

# Scores in one tile. On a CPU a tile stays near the cores' caches; an accelerator wants few, large launches.
CPU_TILE = 1 << 20
ACCELERATOR_TILE = 1 << 26
# Fewer rows than this make thin products, whatever the length: a tile then grows with T, which is still linear.
MIN_ROWS = 64

KEEP_LEVELS = 1 << 8

# Frames from which tiles of oneDNN's products are faster than the sdpa kernel, whose own are MKL's away from home.
FASTER_THRESHOLD = 512


@dataclass(frozen=True)
class Memory:
    """What backward needs besides tensors: the tiling, because dropout's stream is read tile by tile, and its seed."""

    heads: int
    rows: int
    seed: int


@dataclass(frozen=True)
class Tile:
    """Some rows of some heads of one recording, against its first keys."""

    recording: int
    heads: slice
    rows: slice
    num_keys: int


def unsupported_reason(q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool) -> str | None:
    """None: there is nothing this backend cannot do."""
    return None


def is_faster(q: Tensor, mask: AttentionMask) -> bool:
    """Whether this backend is the fastest one for queries like these, [B, H, T, D]."""
    # MKL's kernel wants position biases as T² numbers; tiles add them as they come.
    tiles_pay = serves(q) or (prefers_mkl(q) and mask.positions is not None)
    return q.shape[2] >= FASTER_THRESHOLD and tiles_pay


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, None, Memory]:
    """See `select.Forward`. Products and softmax run in float32 for half precisions, in their own dtype else."""
    B, H, T, _ = q.shape
    # Frames come before heads in memory, so that heads side by side, as step (6) reads them, is a view.
    o = v.new_zeros(B, T, H, v.shape[-1]).transpose(1, 2)
    dtype = softmax_dtype(q)
    q, k, v = (_together(x, dtype) for x in (q, k, v))
    memory = _plan(q, dropout)
    dropout_mask = DropoutMask(memory.seed, dropout, q.device, dtype)
    for tile in _tiles(mask, B, H, T, memory):
        b, heads, rows, keys = tile.recording, tile.heads, tile.rows, slice(0, tile.num_keys)
        bias, allowed = mask.tile(b, heads, rows, tile.num_keys, like=q)
        add = mask.adder(b, heads, rows, tile.num_keys)
        keep = dropout_mask.draw(_length(heads), _length(rows), tile.num_keys)
        o[b, heads, rows] = attend_rows(
            q[b, heads, rows],
            k[b, heads, keys],
            v[b, heads, keys],
            scale=scale,
            bias_HIT=bias,
            allowed_HIT=allowed,
            keep_HIT=keep,
            keep_rate=dropout_mask.keep_rate,
            add=add,
        )
    return o, None, memory


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: None,
    memory: Memory,
    mask: AttentionMask,
    *,
    scale: float,
    dropout: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Added]:
    """See `select.Backward`. Visits the tiles in the order of forward, so that dropout's stream is the same."""
    B, H, T, _ = q.shape
    dtype = softmax_dtype(q)
    dropout_mask = DropoutMask(memory.seed, dropout, q.device, dtype)
    dq = q.new_zeros(B, T, H, q.shape[-1]).transpose(1, 2)
    q, k, v, do = (_together(x, dtype) for x in (q, k, v, do))
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    dadded = mask.zeros(needs, dtype)
    delta = row_sums(do, o.to(dtype))
    for tile in _tiles(mask, B, H, T, memory):
        b, heads, rows, keys = tile.recording, tile.heads, tile.rows, slice(0, tile.num_keys)
        bias, allowed = mask.tile(b, heads, rows, tile.num_keys, like=q)
        add = mask.adder(b, heads, rows, tile.num_keys)
        keep = dropout_mask.draw(_length(heads), _length(rows), tile.num_keys)
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
            add=add,
        )
        mask.tile_backward(ds, b, heads, rows, dadded)
    return dq, dk.to(dq.dtype), dv.to(dq.dtype), dadded


class DropoutMask:
    """Draws which probabilities are kept, tile after tile, from the stream of one seed.

    An entry is dropped where its 8 random bits, a number from 0 to 255, are below 256 p. That is rarely an integer:
    for each row it is rounded up or down at random, by its fraction, so that every entry is dropped with probability p
    exactly. Bits are what dropout costs here, and eight entries to a 64-bit number cost least.
    """

    def __init__(self, seed: int, dropout: float, device: torch.device, dtype: torch.dtype):
        self.keep_rate = keep_rate(dropout)
        self._levels = KEEP_LEVELS * dropout
        self._device, self._dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed) if dropout > 0 else None

    def draw(self, heads: int, rows: int, keys: int) -> Tensor | None:
        """R of a tile, [heads, rows, keys]: 1 where kept and 0 where dropped. None where nothing is dropped."""
        if self._generator is None:
            return None
        numel = heads * rows * keys
        bits = torch.empty((numel + 7) // 8, dtype=torch.int64, device=self._device)
        bits.random_(-(1 << 63), None, generator=self._generator)
        numbers = bits.view(torch.int8)[:numel].view(heads, rows, keys)  # uniform over −128 … 127
        # float32 whatever torch's default dtype is: another one would draw another stream.
        rounding = torch.rand(heads, rows, 1, generator=self._generator, device=self._device, dtype=torch.float32)
        threshold = (self._levels + rounding).floor_().sub_(KEEP_LEVELS // 2)
        # int8 holds −128 … 127; only a rate above 255/256 can ask for 128.
        threshold = threshold.to(torch.int8 if self._levels <= KEEP_LEVELS - 1 else torch.int16)
        keep = torch.empty(numbers.shape, dtype=self._dtype, device=self._device)
        return torch.ge(numbers, threshold, out=keep)


def _plan(q: Tensor, dropout: float) -> Memory:
    _, H, T, _ = q.shape
    # From torch's own generator: manual_seed makes it repeatable, and checkpointing restores it for a second forward.
    seed = int(torch.randint(1 << 62, ())) if dropout > 0 else 0
    if q.device.type == "cpu":
        # oneDNN's products, one for each head, keep all cores at one where it is work enough. MKL takes a batch of
        # them, and heads that go together need fewer calls.
        apart = serves(q) and T * T * q.shape[-1] >= MIN_WORK
        heads = 1 if apart else max(1, min(H, CPU_TILE // max(1, T * T)))
        budget = CPU_TILE
    else:
        heads = max(1, min(H, ACCELERATOR_TILE // max(1, T * MIN_ROWS)))
        budget = ACCELERATOR_TILE
    rows = max(MIN_ROWS, budget // max(1, heads * T))
    return Memory(heads, min(rows, max(T, 1)), seed)


def _together(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, H, T, D] with the frames of each head side by side: tiles read them again and again."""
    return x.to(dtype).contiguous() if x.device.type == "cpu" else x.to(dtype)


def _tiles(mask: AttentionMask, B: int, H: int, T: int, memory: Memory) -> Iterator[Tile]:
    for recording, key_count in enumerate(mask.key_counts(B, T)):
        for head in range(0, H, memory.heads):
            heads = slice(head, min(head + memory.heads, H))
            for row in range(0, T, memory.rows):
                rows = slice(row, min(row + memory.rows, T))
                num_keys = min(key_count, rows.stop) if mask.causal else key_count
                if num_keys:
                    yield Tile(recording, heads, rows, num_keys)


def _length(part: slice) -> int:
    return part.stop - part.start
