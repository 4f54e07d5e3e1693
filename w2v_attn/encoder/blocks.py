"""The transformer blocks over packed frames, [ΣT, C]; only the attention itself depends on the recordings.

Residual stream and norms are in at least float32; matrix products are in the dtype of the weights. On a GPU a sum, the
norm after it and the cast to the dtype of the weights are one launch (`fusions`); a block then also returns the
normalised input of the next block.
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

Linear = gemm.PrepackedLinear | gemm.PlainLinear | gemm.ConcatenatedLinear
# Rows of a chunk in the feed-forward: its intermediate frames, four times as wide, then stay in a cache.
CPU_ROWS, ACCELERATOR_ROWS = 512, 1 << 17
# A recording with more frames is chunked, and the rows of a chunk: 100 and 40 seconds.
LONG_THRESHOLD, LONG_ROWS = 5000, 2000


class TransformerBlock:
    """A block of a Hugging Face encoder, with its weights prepared for many calls.

    Args:
        layer: The Hugging Face block, with the attention of this package.
        norm_first: Whether the norms come before attention and feed-forward (`do_stable_layer_norm`) or after them.
        next_norm: The first norm of the next block if `norm_first`; None if there is no next block.
        table: Relative position biases that all blocks share, [H, R]; None if the family has none.
        prepack: Whether to copy the weights into the layouts that are multiplied fastest; else they are used as they
            are, in the memory of the model.
    """

    def __init__(
        self,
        layer: Any,
        *,
        norm_first: bool,
        next_norm: nn.LayerNorm | None = None,
        table: Tensor | None = None,
        prepack: bool = True,
    ):
        attention, feed_forward = layer.attention, layer.feed_forward
        self._attention, self._table = attention, table
        self._num_heads, self._scale, self._backend = attention.num_heads, attention.scale, attention.backend
        self._dtype: torch.dtype = attention.q_proj.weight.dtype
        linear = _linear if prepack else _shared_linear
        self._q, self._kv, self._qkv = _projections(attention) if prepack else _shared_projections(attention)
        self._q_width = attention.q_proj.out_features
        self._widths = attention.k_proj.out_features, attention.v_proj.out_features
        self._out = linear(attention.out_proj)
        self._up, self._down = linear(feed_forward.intermediate_dense), linear(feed_forward.output_dense)
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
        block_input: Tensor | None = None,
        overwrite: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, [ΣT, C], and the normalised input of the next block or None.

        Args:
            x: [ΣT, C] in at least float32.
            lengths: Frames of each recording.
            reach: Number of frames that a frame attends to on either side of itself; None: all of them.
            block_input: The second result of the previous block.
            overwrite: Whether the output of a long recording may be written into x.
        """
        if len(lengths) > 1 and any(self._is_chunked(length, x, reach) for length in lengths):
            return torch.cat([self(part, [len(part)], reach=reach)[0] for part in x.split(lengths)]), None
        if self._is_chunked(lengths[0], x, reach):
            y = x if overwrite else torch.empty_like(x)
            if reach is None or len(x) <= 2 * reach:
                self._run_chunked(x, y)
            else:
                self._run_windowed(x, reach, y)
            return y, None
        h = self._input(x) if block_input is None else block_input
        q, k, v = self._heads(h)
        o = packed.attend_packed(q, k, v, lengths, backend=self._backend, **self._attention_options(h))
        return self._finish(x, o)

    def _heads(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of all heads, [N, H·D] or [N, H·E]."""
        if self._qkv is not None:
            q, k, v = self._qkv(h).split((self._q_width, *self._widths), -1)
            return q, k, v
        k, v = self._kv(h).split(self._widths, -1)
        return self._q(h), k, v

    def _is_chunked(self, length: int, x: Tensor, reach: int | None) -> bool:
        """Return whether a recording of this length goes through a block in chunks of rows."""
        return (reach is not None and length > 2 * reach) or (x.device.type == "cpu" and length > LONG_THRESHOLD)

    def _run_chunked(self, x: Tensor, y: Tensor) -> None:
        """Write the output of one recording, [T, C], into y, in chunks of rows that save memory.

        y may be x: rows that were written are not read again.
        """
        H = self._num_heads
        k, v = (x.new_empty(H, len(x), width // H, dtype=self._dtype) for width in self._widths)
        for rows in _row_chunks(len(x)):
            k[:, rows], v[:, rows] = (split_heads(part[None], H)[0] for part in self._keys_values(x[rows]))
        for rows in _row_chunks(len(x)):
            h = self._input(x[rows])
            o = packed.attend_all(self._q(h), k, v, first_row=rows.start, **self._attention_options(h))
            y[rows], _ = self._finish(x[rows], o)

    def _run_windowed(self, x: Tensor, reach: int, y: Tensor) -> None:
        """Write the output of one recording, [T, C], into y, with sliding-window attention.

        Only keys and values within reach are in memory. y may be x.
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
                self._q(h), k, v, first_row=first, first_key=first_key, reach=reach, **self._attention_options(h)
            )
            y[first:last], _ = self._finish(x[first:last], o)

    def _attention_options(self, h: Tensor) -> dict[str, Any]:
        """Return the keyword arguments of the attention for these rows, [N, C]."""
        positions = None if self._table is None else self._attention.positions(h[None], self._table)
        return {"num_heads": self._num_heads, "scale": self._scale, "positions": positions}

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._kv(self._input(x)).chunk(2, -1)
        return k, v

    def _input(self, x: Tensor) -> Tensor:
        return (layer_norm(x, self._norm) if self._norm_first else x).to(self._dtype)

    def _finish(self, x: Tensor, o: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output of the block and the normalised input of the next block or None.

        Args:
            x: Input of the block, [N, C].
            o: Output of the heads, [N, C].
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
        """Return the output of a language adapter (MMS), [N, C], which is added to the output of the block."""
        h = layer_norm(y, adapter.norm).to(self._dtype)
        return adapter.linear_2(adapter.act_fn(adapter.linear_1(h)))

    def _add_feed_forward(self, y: Tensor, h: Tensor) -> Tensor:
        """Add the feed-forward of h to y in place; y may be h."""
        rows = _rows_per_chunk(h)
        for y_part, h_part in zip(y.split(rows), h.split(rows), strict=True):
            y_part.add_(self._feed_forward_of(h_part))
        return y

    def _feed_forward(self, h: Tensor) -> Tensor:
        parts = [self._feed_forward_of(part) for part in h.split(_rows_per_chunk(h))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _feed_forward_of(self, h: Tensor) -> Tensor:
        return self._down(self._activate(h.to(self._dtype)))

    def _activate(self, x: Tensor) -> Tensor:
        y = self._up(x, gelu=self._fused)
        return y if self._fused else self._activation(y)


def _rows_per_chunk(x: Tensor) -> int:
    """Return the number of rows of a chunk in the feed-forward."""
    return CPU_ROWS if x.device.type == "cpu" else ACCELERATOR_ROWS


def _row_chunks(num_rows: int) -> Iterator[slice]:
    for first in range(0, num_rows, LONG_ROWS):
        yield slice(first, min(first + LONG_ROWS, num_rows))


def _projections(attention: Any) -> tuple[Linear, Linear, Linear | None]:
    """Return the projection of queries, that of keys and values, and on a GPU that of all three in one product.

    The three share memory. On a CPU the third is None: two products have smaller working sets.
    """
    q_proj, k_proj, v_proj = attention.q_proj, attention.k_proj, attention.v_proj
    if q_proj.weight.device.type == "cpu":
        return _linear(q_proj), _linear(k_proj, v_proj), None
    qkv = gemm.PlainLinear(*_stacked(q_proj, k_proj, v_proj))
    return qkv.rows(slice(None, q_proj.out_features)), qkv.rows(slice(q_proj.out_features, None)), qkv


def _shared_projections(attention: Any) -> tuple[Linear, Linear, None]:
    """Return the projection of queries and that of keys and values, with the weights in the memory of the model."""
    keys_values = [_shared_linear(linear) for linear in (attention.k_proj, attention.v_proj)]
    return _shared_linear(attention.q_proj), gemm.ConcatenatedLinear(keys_values), None


def _shared_linear(linear: nn.Linear) -> gemm.PlainLinear:
    return gemm.PlainLinear(linear.weight, linear.bias)


def _linear(*linears: nn.Linear) -> Linear:
    """Return linear maps of one input as one map with concatenated outputs."""
    return gemm.prepare_linear(*_stacked(*linears))


def _stacked(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return the concatenated weight and bias of linear maps."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if all(linear.bias is None for linear in linears):
        return weight, None
    biases = [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
    return weight, torch.cat(biases).detach()


def _add(y: Tensor, x: Tensor) -> Tensor:
    """Return x + y in the dtype of x, in the memory of y if the dtypes agree; x is not changed."""
    return y.add_(x) if y.dtype == x.dtype else x + y
