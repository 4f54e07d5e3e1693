"""The rows of Parquet files with recordings in them, as on Hugging Face's hub. A row group is read at a time."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from w2v_attn.corpus.columns import NAMES, SPLIT_PREFIXES, Columns, as_label, fields_of
from w2v_attn.corpus.list_formats.list_format import ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row, Unusable

PARQUET_EXTENSION = ".parquet"
# Row groups that stay in memory: readers in parallel are in at most two groups at a time.
CACHED_GROUPS = 2
_reading = threading.Lock()


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The recording in a row of a row group.

    Attributes:
        file: The Parquet file.
        group: Index of the row group.
        row: Index in the row group.
        column: The column of audio.
        size: Bytes, on average over the row group: Parquet states only the size of the whole column.
    """

    file: str
    group: int
    row: int
    column: str
    size: int

    def __call__(self) -> bytes:
        try:
            with _reading:  # the second thread finds it in the cache
                cell = _group(self.file, self.group, self.column, os.stat(self.file).st_mtime_ns)[self.row].as_py()
        except (OSError, ValueError, IndexError) as error:  # Arrow's errors are ValueErrors and OSErrors
            raise CorpusError(f"cannot be read: {self.file}: {error}") from error
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None:
            raise CorpusError(f"is missing: {self.file} has no bytes in this row")
        return content

    def state(self) -> str | None:
        try:
            found = os.stat(self.file)
        except OSError:
            return None
        return f"row {self.row} of group {self.group} of {found.st_size} bytes, changed {found.st_mtime_ns}"


@lru_cache(CACHED_GROUPS)
def _group(file: str, group: int, column: str, changed: int) -> Any:
    """Return the column of a row group. changed: the file's time of change, so that the cache notices a new state."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(column)


def read_parquet_files(files: Sequence[Path], folder: Path, options: ListOptions | None = None) -> Corpus:
    """Return a row for each row of these files, in their order.

    Args:
        files: The Parquet files.
        folder: A folder above them: the ids of rows are the path of the file below it, and a number.
        options: What the user says about them.

    Raises:
        CorpusError: a file is damaged or has no column of audio, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - belongs to an extra
    except ImportError as error:
        raise CorpusError("Parquet files need their library: pip install 'w2v_attn[datasets]'") from error
    options = options or ListOptions()
    ids = (file.relative_to(folder).with_suffix("").as_posix() for file in files)
    rows = tuple(row for file, id in zip(files, ids, strict=True) for row in _rows(file, id, options))
    if not rows:
        raise CorpusError(f"{files[0]} lists no recordings")
    if all(row.unusable_reason for row in rows):
        raise CorpusError(f"{files[0]}, {rows[0].unusable_reason}")
    return Corpus(rows)


def _rows(file: Path, id: str, options: ListOptions) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            groups = [opened.metadata.row_group(group) for group in range(opened.num_row_groups)]
            features = _features(schema)
            options.columns.check(schema.names, file)
            audio = _audio_column(file, schema, features, options.columns)
            columns = options.columns.of(tuple(schema.names)) | {"path": audio}
            holds_paths = _is_string(schema.field(audio).type)
            if not holds_paths:  # whole recordings, named by their numbers
                fields = ("text", "label", "speaker", "split", "channel")
                columns = {field: columns[field] for field in fields if field in columns}
            used = {*columns.values(), *options.columns.values}
            wanted = [name for name in schema.names if name in used]
            known = opened.read(columns=wanted).to_pydict() if wanted else {}
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file} cannot be read as Parquet: {error}") from error
    split = next(
        (split for name in (file.name, file.parent.name) for s, split in SPLIT_PREFIXES.items() if name.startswith(s)),
        None,
    )
    if holds_paths:
        yield from _rows_of_paths(file, id, known, columns, features, split, options)
        return
    sizes = [_bytes_of(group, audio) // max(1, group.num_rows) for group in groups]
    places = ((group, row) for group, about in enumerate(groups) for row in range(about.num_rows))
    for number, (group, row) in enumerate(places):
        values = {name: _value(known[name][number], features.get(name)) for name in columns.values()}
        values |= {name: known[name][number] for name in options.columns.values}
        stated: dict[str, Any] = {"split": split}
        content: ParquetCell | Unusable = ParquetCell(os.fspath(file), group, row, audio, sizes[group])
        try:
            stated = fields_of({name: values[name] for name in wanted}, options.columns)
            stated["split"] = stated["split"] or split
        except CorpusError as error:
            content = Unusable(f"row {number}: {error}")
        yield Row(f"{id}/{number:07d}", file / f"{number:07d}", **stated, content=content)


def _rows_of_paths(
    file: Path,
    id: str,
    known: dict[str, list[Any]],
    columns: dict[str, str],
    features: dict[str, Any],
    split: str | None,
    options: ListOptions,
) -> tuple[Row, ...]:
    """Return the rows of a file that names recordings by their paths."""
    records = [
        Record(
            f"row {number}",
            {"split": split, "id": f"{id}/{number:07d}"}
            | {field: _value(known[name][number], features.get(name)) for field, name in columns.items()}
            | {name: known[name][number] for name in options.columns.values},
        )
        for number in range(len(known[columns["path"]]))
    ]
    chosen: dict[str, Any] = {"label": list(options.columns.values)} if options.columns.values else {}
    if options.columns.chosen.get("channel") is not None:
        chosen["channel"] = "channel"
    found = Columns(chosen)
    return corpus_of(records, file, ListOptions(root=options.root, columns=found)).rows


def _bytes_of(group: Any, column: str) -> int:
    """Return the bytes of a column in a row group; a struct is stored as several columns."""
    parts = map(group.column, range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _features(schema: Any) -> dict[str, Any]:
    """Return Hugging Face's description of the columns, by name; empty where another program wrote the file."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}


def _is_string(kind: Any) -> bool:
    import pyarrow.types

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _audio_column(file: Path, schema: Any, features: dict[str, Any], columns: Columns) -> str:
    import pyarrow.types

    def holds_bytes(name: str) -> bool:
        kind = schema.field(name).type
        is_binary = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        return is_binary or (pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    declared = (name for name, kind in features.items() if kind.get("_type") == "Audio")
    named = (columns.chosen.get("path"), *declared, columns.of(tuple(schema.names)).get("path"))
    found = next((name for name in named if name in schema.names), None)
    if found is not None and (holds_bytes(found) or _is_string(schema.field(found).type)):
        return found
    raise CorpusError(
        f"{file} has no column of audio: expected bytes or paths in one of {', '.join(NAMES['path'][:6])} …, found "
        f"{', '.join(schema.names)}. Say which it is: {columns.hint(path='COLUMN')}"
    )


def _value(value: Any, feature: Any) -> str | None:
    if value is None:
        return None
    names = feature.get("names") if isinstance(feature, dict) else None
    if names and isinstance(value, int):
        return names[value]
    inner = feature.get("feature") if isinstance(feature, dict) else None
    if isinstance(inner, dict) and inner.get("names") and isinstance(value, list):
        return as_label([inner["names"][number] for number in value])
    return as_label(value)
