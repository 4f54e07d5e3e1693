"""The transformer blocks over frames of all recordings at once, [ΣT, C]; only the attention core knows recordings.

Residual stream and norms are float32 at least; products take the dtype of the weights. On a GPU a sum, the norm after
it and what products take of that are one launch (`fusions`); a block then gives out what enters the next one, too.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.attention import packed
from w2v_attn.attention.mathematics import split_heads
from w2v_attn.encoder.frontend import layer_norm
from w2v_attn.ops import fusions, gemm
from w2v_attn.patching.activations import is_gelu

Linear = gemm.PrepackedLinear | gemm.PlainLinear
# Rows of the feed-forward at once: what is between its two products, four times as wide, then stays in a cache.
CPU_ROWS, ACCELERATOR_ROWS = 512, 1 << 17
# Frames from which a recording is a long one, and its rows that go through a block together: 100 and 40 seconds.
LONG_THRESHOLD, LONG_ROWS = 5000, 2000


class Block:
    """One block of a Hugging Face encoder, its weights laid out for many calls.

    norm_first: whether the norms stand before attention and feed-forward (stable) or after them.
    next_norm: with norms first, the one that the next block begins with; None where there is no next block.
    table: biases by distance that all blocks share, [H, R]; None where the family has none.
    """

    def __init__(
        self, layer: Any, *, norm_first: bool, next_norm: nn.LayerNorm | None = None, table: Tensor | None = None
    ):
        attention, feed_forward = layer.attention, layer.feed_forward
        self._attention, self._table = attention, table
        self._num_heads, self._scale, self._backend = attention.num_heads, attention.scale, attention.backend
        self._dtype: torch.dtype = attention.q_proj.weight.dtype
        self._q, self._kv, self._qkv = _projections(attention)
        self._q_width = attention.q_proj.out_features
        self._widths = attention.k_proj.out_features, attention.v_proj.out_features
        self._out = _linear(attention.out_proj)
        self._up, self._down = _linear(feed_forward.intermediate_dense), _linear(feed_forward.output_dense)
        self._activation = feed_forward.intermediate_act_fn
        self._fused = is_gelu(self._activation)
        self._norm, self._final_norm = layer.layer_norm, layer.final_layer_norm
        self._norm_first, self._next_norm = norm_first, next_norm
        self._adapter = getattr(layer, "adapter_layer", None)
        self._fuses = fusions.is_supported(attention.q_proj.weight.device) and self._dtype != torch.float64

    def __call__(
        self,
        x: Tensor,
        lengths: list[int],
        *,
        reach: int | None = None,
        entering: Tensor | None = None,
        spend: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """[ΣT, C] -> [ΣT, C], and what enters the next block where that is known.

        reach: frames that a frame attends on either side of itself; None: all of them.
        entering: what the block before knew. spend: x is nobody's any more, and a long recording may be written over.
        """
        if len(lengths) > 1 and any(self._is_apart(length, x, reach) for length in lengths):
            return torch.cat([self(part, [len(part)], reach=reach)[0] for part in x.split(lengths)]), None
        if self._is_apart(lengths[0], x, reach):
            y = x if spend else torch.empty_like(x)
            if reach is None or len(x) <= 2 * reach:
                self._long(x, y)
            else:
                self._windowed(x, reach, y)
            return y, None
        h = self._input(x) if entering is None else entering
        q, k, v = self._heads(h)
        o = packed.attend_packed(q, k, v, lengths, backend=self._backend, **self._of_core(h))
        return self._finish(x, o)

    def _heads(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, [N, H·D] or [N, H·E]."""
        if self._qkv is not None:
            q, k, v = self._qkv(h).split((self._q_width, *self._widths), -1)
            return q, k, v
        k, v = self._kv(h).split(self._widths, -1)
        return self._q(h), k, v

    def _is_apart(self, length: int, x: Tensor, reach: int | None) -> bool:
        """Whether a recording of this length goes through a block some rows at a time."""
        return (reach is not None and length > 2 * reach) or (x.device.type == "cpu" and length > LONG_THRESHOLD)

    def _long(self, x: Tensor, y: Tensor) -> None:
        """One recording, [T, C] -> [T, C], with little memory beside keys and values: some rows at a time.

        y: what is written, which may be x: of that, rows that were written are not read again.
        """
        H = self._num_heads
        k, v = (x.new_empty(H, len(x), width // H, dtype=self._dtype) for width in self._widths)
        for rows in _rows_of(len(x)):
            k[:, rows], v[:, rows] = (split_heads(part[None], H)[0] for part in self._keys_values(x[rows]))
        for rows in _rows_of(len(x)):
            h = self._input(x[rows])
            o = packed.attend_all(self._q(h), k, v, first_row=rows.start, **self._of_core(h))
            y[rows], _ = self._finish(x[rows], o)

    def _windowed(self, x: Tensor, reach: int, y: Tensor) -> None:
        """One recording, [T, C] -> [T, C], each frame attending those near it; only keys in reach are held.

        y: as in `_long`.
        """
        T = len(x)
        held: deque[tuple[Tensor, Tensor]] = deque()
        first_key = last_key = 0
        for first in range(0, T, LONG_ROWS):
            last = min(first + LONG_ROWS, T)
            while last_key < min(last + reach, T):
                held.append(self._keys_values(x[last_key : last_key + LONG_ROWS]))
                last_key += len(held[-1][0])
            while first_key + len(held[0][0]) <= first - reach:
                first_key += len(held.popleft()[0])
            k, v = (torch.cat(parts) for parts in zip(*held, strict=True))
            h = self._input(x[first:last])
            o = packed.attend_window(
                self._q(h), k, v, first_row=first, first_key=first_key, reach=reach, **self._of_core(h)
            )
            y[first:last], _ = self._finish(x[first:last], o)

    def _of_core(self, h: Tensor) -> dict[str, Any]:
        """What the core is told of these rows, which enter the attention as [N, C]."""
        positions = None if self._table is None else self._attention.positions(h[None], self._table)
        return {"num_heads": self._num_heads, "scale": self._scale, "positions": positions}

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._kv(self._input(x)).chunk(2, -1)
        return k, v

    def _input(self, x: Tensor) -> Tensor:
        return (layer_norm(x, self._norm) if self._norm_first else x).to(self._dtype)

    def _finish(self, x: Tensor, o: Tensor) -> tuple[Tensor, Tensor | None]:
        """What follows the core: the block's output, from its input x and what the heads return, both [N, C].

        And what enters the next block where that is known.
        """
        if self._fuses:
            y, h = self._finish_fused(x, o)
        else:
            y, h = self._finish_plain(x, o), None
        return (y, h) if self._adapter is None else (_add(self._adapt(y, self._adapter), y), None)

    def _finish_fused(self, x: Tensor, o: Tensor) -> tuple[Tensor, Tensor | None]:
        keeps, last = ("sum", self._next_norm) if self._norm_first else ("norm", self._final_norm)
        y, h = fusions.add_norm(
            self._out(o), x, self._final_norm if self._norm_first else self._norm, half=self._dtype, keeps=keeps
        )
        z = self._feed_forward(h)
        return (_add(z, y), None) if last is None else fusions.add_norm(z, y, last, half=self._dtype, keeps=keeps)

    def _finish_plain(self, x: Tensor, o: Tensor) -> Tensor:
        y = _add(self._out(o), x)
        if self._norm_first:
            return self._add_feed_forward(y, layer_norm(y, self._final_norm))
        y = layer_norm(y, self._norm)
        return layer_norm(self._add_feed_forward(y, y), self._final_norm)

    def _adapt(self, y: Tensor, adapter: Any) -> Tensor:
        """What the adapter of a language adds to a block's output, [N, C]."""
        h = layer_norm(y, adapter.norm).to(self._dtype)
        return adapter.linear_2(adapter.act_fn(adapter.linear_1(h)))

    def _add_feed_forward(self, y: Tensor, h: Tensor) -> Tensor:
        """y and the feed-forward of h, in the memory of y, which may be h."""
        rows = _rows_together(h)
        for y_part, h_part in zip(y.split(rows), h.split(rows), strict=True):
            y_part.add_(self._feed_forward_of(h_part))
        return y

    def _feed_forward(self, h: Tensor) -> Tensor:
        parts = [self._feed_forward_of(part) for part in h.split(_rows_together(h))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _feed_forward_of(self, h: Tensor) -> Tensor:
        return self._down(self._activate(h.to(self._dtype)))

    def _activate(self, x: Tensor) -> Tensor:
        y = self._up(x, gelu=self._fused)
        return y if self._fused else self._activation(y)


def _rows_together(x: Tensor) -> int:
    """How many rows go through the feed-forward at once."""
    return CPU_ROWS if x.device.type == "cpu" else ACCELERATOR_ROWS


def _rows_of(num_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, LONG_ROWS):
        yield slice(first, min(first + LONG_ROWS, num_rows))


def _projections(attention: Any) -> tuple[Linear, Linear, Linear | None]:
    """Those of queries, and of keys and values together; and on a GPU one of all three, with the same weights in it.

    On a CPU two products read less at once.
    """
    q_proj, k_proj, v_proj = attention.q_proj, attention.k_proj, attention.v_proj
    if q_proj.weight.device.type == "cpu":
        return _linear(q_proj), _linear(k_proj, v_proj), None
    qkv = gemm.PlainLinear(*_stacked(q_proj, k_proj, v_proj))
    return qkv.rows(slice(None, q_proj.out_features)), qkv.rows(slice(q_proj.out_features, None)), qkv


def _linear(*linears: nn.Linear) -> Linear:
    """Linear maps of one input as one, their outputs side by side."""
    return gemm.prepare_linear(*_stacked(*linears))


def _stacked(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of linear maps as those of one."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
    return weight, torch.cat(biases).detach()


def _add(y: Tensor, x: Tensor) -> Tensor:
    """x + y in the dtype of x, in the memory of y where that is possible; x stays as it is."""
    return y.add_(x) if y.dtype == x.dtype else x + y
