"""Relative positions in the scores: what some families add in step (2), and its derivatives.

Legend, beside that of `mathematics.py`
    R  distances that are told apart        L  how many of them are before a query
    N  distances that occur in a tile of I rows and K keys, I + K − 1

A key that stands r − L frames after its query adds A[i, r] to their score; from r = 0 and r = R − 1 on, farther keys
count as those.

    (2)  S = s Q Kᵀ + bias + A[i, clamp(j − i, −L, R − 1 − L) + L]

Two kinds of A are known, and a row of it is one number times a table, or a product with a table of vectors:

    a table      A[i, r] = gᵢ t[r]              gate g of the query, 1 where there is none    (WavLM)
    vectors      A[i, r] = s (qᵢ + v) · e[r]    v: what a family adds to queries here         (Conformer, w2v-BERT)

Backward, from dS of step (3)
    (2)  dA[i, r] = Σ dS[i, j] over the keys j at distance r − L
         dt[r] = Σᵢ gᵢ dA[i, r]                 dgᵢ = Σᵣ t[r] dA[i, r]
         d(qᵢ + v) = s Σᵣ dA[i, r] e[r]         de[r] = s Σᵢ dA[i, r] (qᵢ + v)

A row of scores is a row of A, shifted by its place: where the rows of A have all N distances of a tile, one after the
other, what is added to the scores is A itself, read with rows that are one number shorter. So nothing is gathered.

Source: S. Chen et al., "WavLM", section III.B, for the table and its gate; Z. Dai et al., "Transformer-XL", section 3.3
and appendix B, for the vectors and the shift.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose positions are added at once on a CPU: a tile of them has K + 63 distances, not 2 K, and stays in a cache.
CPU_ROWS = 64


class Columns(NamedTuple):
    """Which distances a tile's N columns of A are for.

    first, last: the range of r among them. place: int64 [N], r − first of each; None where that is 0 … N − 1.
    """

    first: int
    last: int
    place: Tensor | None

    @property
    def range(self) -> slice:
        return slice(self.first, self.last + 1)


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """What relative positions add to the scores: a table, with a gate or without; or queries and vectors.

    left: L, distances before a query that are told apart.
    table: [H, R]. gate: [B, H, T] or None.
    queries: qᵢ + v, [B, H, T, D]. vectors: [H or 1, R, D]. scale: s, of their products.
    """

    left: int
    table: Tensor | None = None
    gate: Tensor | None = None
    queries: Tensor | None = None
    vectors: Tensor | None = None
    scale: float = 1.0

    @cached_property
    def num_distances(self) -> int:
        """R."""
        return self._by_distance.shape[1]

    @property
    def _by_distance(self) -> Tensor:
        """What has a place for each distance, [H or 1, R, …]."""
        tensor = self.table if self.vectors is None else self.vectors
        assert tensor is not None
        return tensor

    @property
    def is_symmetric_table(self) -> bool:
        """Whether it is a table that tells as many distances apart before a query as after it."""
        return self.table is not None and self.num_distances == 2 * self.left + 1

    def check(self, batch: int, num_heads: int, num_frames: int, head_size: int) -> None:
        """Raises ValueError where a tensor has another shape than these sizes ask for."""
        if (self.table is None) == (self.vectors is None) or (self.queries is None) != (self.vectors is None):
            raise ValueError("relative positions are either a table, with a gate or without, or queries and vectors")
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

    def frames(self, part: slice) -> "RelativePositions":
        """The same for some of the frames."""
        gate = None if self.gate is None else self.gate[:, :, part]
        return replace(self, gate=gate, queries=None if self.queries is None else self.queries[:, :, part])

    def tile(self, recording: int, heads: slice, rows: slice, keys: slice, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of some rows against some keys of a recording, [H, I, K]; a view."""
        columns = self._columns(rows, keys)
        if self.table is not None:
            table_HN = self._table(columns, heads, dtype)
            gate_HI = self._gate(recording, heads, rows, dtype)
            a_HIN = table_HN[:, None] * gate_HI[:, :, None]
        else:
            queries_HID, vectors_HRD = self._factors(columns, recording, heads, rows, dtype)
            a_HIN = torch.matmul(queries_HID * self.scale, vectors_HRD.mT)
            if columns.place is not None:
                a_HIN = a_HIN.index_select(-1, columns.place)
        return _shifted(a_HIN.contiguous(), _length(keys))

    def add_to(self, s_HIK: Tensor, recording: int, heads: slice, rows: slice, keys: slice) -> None:
        """Adds to the scores of some rows against some keys of a recording, [H, I, K], in place, what positions add."""
        step = CPU_ROWS if s_HIK.device.type == "cpu" else max(_length(rows), 1)
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
        """Adds to the gradients that are given, in the shapes of their tensors, what a tile of all first keys has."""
        H, num_rows, num_keys = ds_HIK.shape
        columns = self._columns(rows, slice(0, num_keys))
        da_HIN = ds_HIK.new_zeros(H, num_rows, num_rows + num_keys - 1)
        _shifted(da_HIN, num_keys).copy_(ds_HIK)
        if self.table is not None:
            if dgate is not None:
                table_HN = self._table(columns, heads, ds_HIK.dtype)
                # Sums of torch add up in pieces, products one after the other: over signs that cancel that is as good
                # as two digits.
                dgate[recording, heads, rows] += (da_HIN * table_HN[:, None]).sum(-1)
            if dtable is not None:
                gate_HI = self._gate(recording, heads, rows, ds_HIK.dtype)
                dt_HN = (da_HIN * gate_HI[:, :, None]).sum(1)
                _fold(dtable[heads, columns.range], dt_HN, columns)
            return
        queries_HID, vectors_HRD = self._factors(columns, recording, heads, rows, ds_HIK.dtype)
        if columns.place is not None:
            da_HIN = _fold(da_HIN.new_zeros(H, num_rows, vectors_HRD.shape[1]), da_HIN, columns)
        if dqueries is not None:
            dqueries[recording, heads, rows] += torch.matmul(da_HIN, vectors_HRD).mul_(self.scale)
        if dvectors is not None:
            de_HRD = torch.matmul(da_HIN.mT, queries_HID).mul_(self.scale)
            shared = dvectors.shape[0] == 1
            dvectors[slice(None) if shared else heads, columns.range] += de_HRD.sum(0) if shared else de_HRD

    def rows(self, dtype: torch.dtype) -> Tensor:
        """A of queries and vectors, [B, H, T, R]: the columns of all distances, whether they occur or not."""
        assert self.queries is not None
        assert self.vectors is not None
        return torch.matmul(self.queries.to(dtype) * self.scale, self.vectors.to(dtype).mT)

    def rows_backward(self, da_BHTR: Tensor) -> tuple[Tensor, Tensor]:
        """Undoes `rows`: dqueries [B, H, T, D] and dvectors [H or 1, R, D]."""
        assert self.queries is not None
        assert self.vectors is not None
        dqueries = torch.matmul(da_BHTR, self.vectors.to(da_BHTR.dtype)).mul_(self.scale)
        dvectors = torch.matmul(da_BHTR.mT, self.queries.to(da_BHTR.dtype)).mul_(self.scale)
        return dqueries, dvectors.sum((0, 1), keepdim=True)[0] if len(self.vectors) == 1 else dvectors.sum(0)

    def _columns(self, rows: slice, keys: slice) -> Columns:
        nearest, farthest = keys.start - rows.stop + 1 + self.left, keys.stop - 1 - rows.start + self.left
        last = self.num_distances - 1
        if nearest >= 0 and farthest <= last:
            return Columns(nearest, farthest, None)
        first, end = (min(max(place, 0), last) for place in (nearest, farthest))
        place = torch.arange(nearest, farthest + 1, device=self._by_distance.device).clamp_(0, last).sub_(first)
        return Columns(first, end, place)

    def _table(self, columns: Columns, heads: slice, dtype: torch.dtype) -> Tensor:
        """[H, N]."""
        assert self.table is not None
        table = self.table[heads, columns.range].to(dtype)
        return table if columns.place is None else table.index_select(1, columns.place)

    def _gate(self, recording: int, heads: slice, rows: slice, dtype: torch.dtype) -> Tensor:
        """[H, I]."""
        assert self.table is not None
        if self.gate is None:
            return self.table.new_ones(heads.stop - heads.start, _length(rows), dtype=dtype)
        return self.gate[recording, heads, rows].to(dtype).contiguous()  # so that A comes out contiguous as well

    def _factors(
        self, columns: Columns, recording: int, heads: slice, rows: slice, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """queries [H, I, D] and vectors [H or 1, r, D], for the range of the columns."""
        assert self.queries is not None
        assert self.vectors is not None
        vectors = self.vectors[slice(None) if self.vectors.shape[0] == 1 else heads, columns.range]
        return self.queries[recording, heads, rows].to(dtype), vectors.to(dtype)


def _shifted(a_HIN: Tensor, num_keys: int) -> Tensor:
    """Row i of [H, I, N] from column I − 1 − i on, [H, I, K]: the keys in order, as each row sees them. A view."""
    H, num_rows, N = a_HIN.shape
    assert num_rows + num_keys - 1 == N
    assert a_HIN.is_contiguous()
    return a_HIN.as_strided((H, num_rows, num_keys), (num_rows * N, N - 1, 1), a_HIN.storage_offset() + num_rows - 1)


def _fold(total: Tensor, columns_N: Tensor, columns: Columns) -> Tensor:
    """Adds columns [..., N] to those [..., r] that their distances count as; returns that."""
    return total.add_(columns_N) if columns.place is None else total.index_add_(-1, columns.place, columns_N)


def _length(part: slice) -> int:
    return part.stop - part.start
