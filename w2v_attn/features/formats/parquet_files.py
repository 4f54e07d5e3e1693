"""The layout `parquet`: a row for each recording, with the columns id, metadata (JSON), and one for each layer.

A layer is a list of frames, each a list of fixed length; a pooled layer is one such list.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from w2v_attn.features.arrays import NUMPY_DTYPES, as_tensor
from w2v_attn.features.feature_errors import DamagedError, FeatureSetError
from w2v_attn.features.formats.interface import IndexedReader, NumberedFiles, check_arrays
from w2v_attn.features.recording_features import RecordingFeatures

FILES = "features-*.parquet"
ID, METADATA = "id", "metadata"
# Bytes of a row group, which is read as a whole; and of a file.
GROUP, SIZE = 8 << 20, 512 << 20


class ParquetReader(IndexedReader):
    """The reader. It locates recordings by the id column, reads whole row groups, and keeps the last one in memory."""

    def __init__(self, folder: Path):
        found: dict[str, tuple[Path, int, int]] = {}
        self._last: tuple[Path, int, pa.Table] | None = None
        for path in sorted(folder.glob(FILES)):
            try:
                file = pq.ParquetFile(path)
                for group in range(file.num_row_groups):
                    ids = file.read_row_group(group, [ID])[ID].to_pylist()
                    found |= {id: (path, group, row) for row, id in enumerate(ids)}
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DamagedError(f"{path} cannot be read: {error}") from error
        super().__init__(found)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}

    def open(self, id: str) -> RecordingFeatures:
        path, group, row = self._found[id]
        table = self._group(path, group).slice(row, 1)
        layers = [name for name in table.column_names if name not in (ID, METADATA) and table[name][0].is_valid]
        metadata = json.loads(table[METADATA][0].as_py())
        return RecordingFeatures(id, layers, metadata, lambda layer: _as_tensor(table[layer].chunk(0)))

    def _group(self, path: Path, group: int) -> pa.Table:
        if self._last is None or self._last[:2] != (path, group):
            try:
                self._last = (path, group, pq.ParquetFile(path).read_row_group(group))
            except (pa.ArrowException, OSError) as error:
                raise DamagedError(f"{path} cannot be read: {error}") from error
        return self._last[2]


class ParquetWriter:
    """The writer: files of about `size` bytes, in row groups of some megabytes. All recordings have the same layers."""

    dtypes = NUMPY_DTYPES

    def __init__(self, folder: Path, size: int = SIZE):
        self._files, self._size = NumberedFiles(folder, "parquet", digits=5), size
        self._schema: pa.Schema | None = None
        self._rows: list[pa.RecordBatch] = []
        self._bytes = self._in_group = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "ParquetWriter":
        self._files.clear()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
            self._end_file()
        else:
            self._files.drop(*error)

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        check_arrays(id, features, "parquet", self.dtypes)
        columns = {ID: pa.array([id]), METADATA: pa.array([json.dumps(dict(metadata), ensure_ascii=False)])}
        columns |= {layer: _as_row(tensor) for layer, tensor in features.items()}
        row = pa.RecordBatch.from_pydict(columns)
        schema = self._schema = self._schema or row.schema
        if row.schema != schema:
            expected, found = _described(schema), _described(row.schema)
            raise FeatureSetError(f"a Parquet file has one schema, expected {expected}, found {found}")
        self._rows.append(row)
        size = sum(tensor.nbytes for tensor in features.values())
        self._bytes += size
        self._in_group += size
        if self._in_group >= GROUP:
            self._flush()
        if self._bytes >= self._size:
            self._flush()
            self._end_file()

    def _flush(self) -> None:
        """Write the pending rows as a row group."""
        if not self._rows:
            return
        if self._writer is None:
            assert self._schema is not None
            # Dictionary encoding is for repeated values, which features do not have.
            options = {"use_dictionary": False, "compression": "zstd", "store_schema": True}
            self._writer = self._files.enter(pq.ParquetWriter(self._files.begin(), self._schema, **options))
        self._writer.write_table(pa.Table.from_batches(self._rows).combine_chunks())
        self._rows, self._in_group = [], 0

    def _end_file(self) -> None:
        self._files.end()
        self._writer, self._bytes = None, 0


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema if field.name not in (ID, METADATA))


def _as_row(tensor: Tensor) -> pa.Array:
    """Return [frames, channels] or [channels] as an array with one element."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(tensor.numpy().reshape(-1)), tensor.shape[-1])
    if tensor.dim() == 1:
        return flat
    return pa.ListArray.from_arrays(np.array([0, len(tensor)], np.int32), flat)


def _as_tensor(column: pa.Array) -> Tensor:
    """Return the element of an array with one element."""
    if pa.types.is_fixed_size_list(column.type):
        return as_tensor(column.flatten().to_numpy(zero_copy_only=False))
    frames = column.flatten()
    return as_tensor(frames.flatten().to_numpy(zero_copy_only=False).reshape(len(frames), frames.type.list_size))
