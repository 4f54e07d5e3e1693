# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""Relative positions: what some model families add to the attention scores in step (2), and its derivatives.

Legend, in addition to that of `mathematics.py`
    R  distinct distances                   L  how many of them are before a query
    N  distances that occur in a tile of I rows and K keys, I + K − 1

The score of query i and the key r − L frames after it gets A[i, r] added; keys beyond r = 0 and r = R − 1 are clamped
to these.

    (2)  S = s Q Kᵀ + bias + A[i, clamp(j − i, −L, R − 1 − L) + L]

There are two kinds of A: its rows are one number times a table, or products with a table of vectors:

    a table      A[i, r] = gᵢ t[r]              gate g of the query, 1 if there is none       (WavLM)
    vectors      A[i, r] = s (qᵢ + v) · e[r]    v: bias of the queries here                   (Conformer, w2v-BERT)

Backward, from dS of step (3)
    (2)  dA[i, r] = Σ dS[i, j] over the keys j at distance r − L
         dt[r] = Σᵢ gᵢ dA[i, r]                 dgᵢ = Σᵣ t[r] dA[i, r]
         d(qᵢ + v) = s Σᵣ dA[i, r] e[r]         de[r] = s Σᵢ dA[i, r] (qᵢ + v)

A row of biases is a row of A, shifted by its index: if the rows of A are contiguous and have all N distances of a tile,
the biases are A itself, read with a row stride that is one number shorter. So nothing is gathered.

Source: S. Chen et al., "WavLM", section III.B, for the table and its gate; Z. Dai et al., "Transformer-XL", section 3.3
and appendix B, for the vectors and the shift.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose biases are added at once on a CPU: such a tile has K + 63 distances, not 2 K, and fits a cache.
CPU_ROWS = 64


class DistanceColumns(NamedTuple):
    """The distances r of a tile's N columns of A.

    first, last: range of r. offsets: int64 [N], r − first of each column; None if that is 0 … N − 1.
    """

    first: int
    last: int
    offsets: Tensor | None

    @property
    def range(self) -> slice:
        """The range of r as a slice."""
        return slice(self.first, self.last + 1)


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """What relative positions add to the attention scores: a table, with or without a gate; or queries and vectors.

    Args:
        left: L, distinct distances before a query.
        table: [H, R].
        gate: [B, H, T], a factor of each query on the table; None for 1.
        queries: qᵢ + v, [B, H, T, D].
        vectors: [H or 1, R, D].
        scale: Factor s on the products of queries and vectors.
    """

    left: int
    table: Tensor | None = None
    gate: Tensor | None = None
    queries: Tensor | None = None
    vectors: Tensor | None = None
    scale: float = 1.0

    @cached_property
    def num_distances(self) -> int:
        """R, the number of distinct distances."""
        return self._by_distance.shape[1]

    @property
    def _by_distance(self) -> Tensor:
        """The tensor with one entry for each distance, [H or 1, R, …]."""
        tensor = self.table if self.vectors is None else self.vectors
        assert tensor is not None
        return tensor

    @property
    def is_symmetric_table(self) -> bool:
        """Whether this is a table with as many distances before a query as after it."""
        return self.table is not None and self.num_distances == 2 * self.left + 1

    def check(self, batch: int, num_heads: int, num_frames: int, head_size: int) -> None:
        """Check the shapes of the tensors against the sizes of a call.

        Raises:
            ValueError: a missing tensor, a tensor of another shape, or `left` out of range.
        """
        if (self.table is None) == (self.vectors is None) or (self.queries is None) != (self.vectors is None):
            raise ValueError(
                "relative positions need either a table, with or without a gate, or both queries and vectors"
            )
        expected = {
            "table": (num_heads, self.num_distances),
            "gate": (batch, num_heads, num_frames),
            "queries": (batch, num_heads, num_frames, head_size),
            "vectors": (num_heads, self.num_distances, head_size),
        }
        for name, shape in expected.items():
            tensor: Tensor | None = getattr(self, name)
            shared = name == "vectors" and tensor is not None and tuple(tensor.shape) == (1, *shape[1:])
            if tensor is not None and tuple(tensor.shape) != shape and not shared:
                raise ValueError(f"{name} of relative positions must be {list(shape)}, got {list(tensor.shape)}")
        if not 0 <= self.left < self.num_distances:
            raise ValueError(f"left must be at least 0 and below the {self.num_distances} distances, got {self.left}")

    def slice_frames(self, part: slice) -> "RelativePositions":
        """Return the relative positions of some of the frames."""
        gate = None if self.gate is None else self.gate[:, :, part]
        return replace(self, gate=gate, queries=None if self.queries is None else self.queries[:, :, part])

    def tile(self, recording: int, heads: slice, rows: slice, keys: slice, dtype: torch.dtype) -> Tensor:
        """Return the biases of a tile of rows and keys of one recording, [H, I, K]; a view."""
        columns = self._columns(rows, keys)
        if self.table is not None:
            table_HN = self._table(columns, heads, dtype)
            gate_HI = self._gate(recording, heads, rows, dtype)
            a_HIN = table_HN[:, None] * gate_HI[:, :, None]
        else:
            queries_HID, vectors_HRD = self._factors(columns, recording, heads, rows, dtype)
            a_HIN = torch.matmul(queries_HID * self.scale, vectors_HRD.mT)
            if columns.offsets is not None:
                a_HIN = a_HIN.index_select(-1, columns.offsets)
        return _relative_shift(a_HIN.contiguous(), slice_length(keys))

    def add_to_scores(self, s_HIK: Tensor, recording: int, heads: slice, rows: slice, keys: slice) -> None:
        """Add the biases of a tile of rows and keys of one recording to its scores [H, I, K], in place."""
        step = CPU_ROWS if s_HIK.device.type == "cpu" else max(slice_length(rows), 1)
        for first in range(rows.start, rows.stop, step):
            part = slice(first, min(first + step, rows.stop))
            tile = self.tile(recording, heads, part, keys, s_HIK.dtype)
            s_HIK[:, part.start - rows.start : part.stop - rows.start] += tile

    def tile_backward(
        self,
        ds_HIK: Tensor,
        recording: int,
        heads: slice,
        rows: slice,
        *,
        dtable: Tensor | None = None,
        dgate: Tensor | None = None,
        dqueries: Tensor | None = None,
        dvectors: Tensor | None = None,
    ) -> None:
        """Add the gradients of a tile to those that are given, which have the shapes of their tensors.

        Args:
            ds_HIK: dS of step (3), for some rows and the first K keys.
            recording: Number of the recording in the batch.
            heads: Heads of the tile.
            rows: Queries of the tile.
            dtable: Gradient of the table, or None, as for the others.
            dgate: Gradient of the gate.
            dqueries: Gradient of the queries.
            dvectors: Gradient of the vectors.
        """
        H, num_rows, num_keys = ds_HIK.shape
        columns = self._columns(rows, slice(0, num_keys))
        da_HIN = ds_HIK.new_zeros(H, num_rows, num_rows + num_keys - 1)
        _relative_shift(da_HIN, num_keys).copy_(ds_HIK)
        if self.table is not None:
            if dgate is not None:
                table_HN = self._table(columns, heads, ds_HIK.dtype)
                # torch's sums add in blocks, matrix products sequentially: with signs that cancel this is worth two
                # digits.
                dgate[recording, heads, rows] += (da_HIN * table_HN[:, None]).sum(-1)
            if dtable is not None:
                gate_HI = self._gate(recording, heads, rows, ds_HIK.dtype)
                dt_HN = (da_HIN * gate_HI[:, :, None]).sum(1)
                _fold(dtable[heads, columns.range], dt_HN, columns)
            return
        queries_HID, vectors_HRD = self._factors(columns, recording, heads, rows, ds_HIK.dtype)
        if columns.offsets is not None:
            da_HIN = _fold(da_HIN.new_zeros(H, num_rows, vectors_HRD.shape[1]), da_HIN, columns)
        if dqueries is not None:
            dqueries[recording, heads, rows] += torch.matmul(da_HIN, vectors_HRD).mul_(self.scale)
        if dvectors is not None:
            de_HRD = torch.matmul(da_HIN.mT, queries_HID).mul_(self.scale)
            shared = dvectors.shape[0] == 1
            dvectors[slice(None) if shared else heads, columns.range] += de_HRD.sum(0) if shared else de_HRD

    def rows(self, dtype: torch.dtype) -> Tensor:
        """Return A of queries and vectors, [B, H, T, R], for all distances, including those that do not occur."""
        assert self.queries is not None
        assert self.vectors is not None
        return torch.matmul(self.queries.to(dtype) * self.scale, self.vectors.to(dtype).mT)

    def rows_backward(self, da_BHTR: Tensor) -> tuple[Tensor, Tensor]:
        """Return dqueries [B, H, T, D] and dvectors [H or 1, R, D]: the backward of `rows`."""
        assert self.queries is not None
        assert self.vectors is not None
        dqueries = torch.matmul(da_BHTR, self.vectors.to(da_BHTR.dtype)).mul_(self.scale)
        dvectors = torch.matmul(da_BHTR.mT, self.queries.to(da_BHTR.dtype)).mul_(self.scale)
        return dqueries, dvectors.sum((0, 1), keepdim=True)[0] if len(self.vectors) == 1 else dvectors.sum(0)

    def _columns(self, rows: slice, keys: slice) -> DistanceColumns:
        nearest, farthest = keys.start - rows.stop + 1 + self.left, keys.stop - 1 - rows.start + self.left
        last = self.num_distances - 1
        if nearest >= 0 and farthest <= last:
            return DistanceColumns(nearest, farthest, None)
        first, end = (min(max(distance, 0), last) for distance in (nearest, farthest))
        offsets = torch.arange(nearest, farthest + 1, device=self._by_distance.device).clamp_(0, last).sub_(first)
        return DistanceColumns(first, end, offsets)

    def _table(self, columns: DistanceColumns, heads: slice, dtype: torch.dtype) -> Tensor:
        """Return the table of these columns, [H, N]."""
        assert self.table is not None
        table = self.table[heads, columns.range].to(dtype)
        return table if columns.offsets is None else table.index_select(1, columns.offsets)

    def _gate(self, recording: int, heads: slice, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the gate of these rows, [H, I]."""
        assert self.table is not None
        if self.gate is None:
            return self.table.new_ones(heads.stop - heads.start, slice_length(rows), dtype=dtype)
        return self.gate[recording, heads, rows].to(dtype).contiguous()  # so that A is contiguous, too

    def _factors(
        self, columns: DistanceColumns, recording: int, heads: slice, rows: slice, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return queries [H, I, D] and vectors [H or 1, r, D] for the range of the columns."""
        assert self.queries is not None
        assert self.vectors is not None
        vectors = self.vectors[slice(None) if self.vectors.shape[0] == 1 else heads, columns.range]
        return self.queries[recording, heads, rows].to(dtype), vectors.to(dtype)


def _relative_shift(a_HIN: Tensor, num_keys: int) -> Tensor:
    """Return a view [H, I, K] whose row i is that of [H, I, N] from column I − 1 − i on: the keys in order."""
    H, num_rows, N = a_HIN.shape
    assert num_rows + num_keys - 1 == N
    assert a_HIN.is_contiguous()
    return a_HIN.as_strided((H, num_rows, num_keys), (num_rows * N, N - 1, 1), a_HIN.storage_offset() + num_rows - 1)


def _fold(total: Tensor, columns_N: Tensor, columns: DistanceColumns) -> Tensor:
    """Add columns [..., N] to the columns of their clamped distances, [..., r], in place; return these."""
    return total.add_(columns_N) if columns.offsets is None else total.index_add_(-1, columns.offsets, columns_N)


def slice_length(part: slice) -> int:
    """Return the length of a slice with a start and a stop."""
    return part.stop - part.start
