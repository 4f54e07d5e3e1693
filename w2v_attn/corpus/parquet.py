"""Parquet files with recordings in them, as on Hugging Face's hub -> rows. They are read a row group at a time."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from w2v_attn.corpus.manifests import LABEL_COLUMNS, PATH_COLUMNS, SPEAKER_COLUMNS, TEXT_COLUMNS, row_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row

EXTENSION = ".parquet"
# What the names of splits begin with.
SPLITS = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}
# Of the groups that were read last these stay in memory: readers that are ahead of each other meet in two.
GROUPS_KEPT = 2
_reading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Cell:
    """The recording in a row of a row group. size: the mean of its group, for only the column as a whole says it."""

    file: str
    group: int
    row: int
    column: str
    size: int

    def __call__(self) -> bytes:
        try:
            with _reading:  # whoever comes second finds it read
                cell = _group(self.file, self.group, self.column, os.stat(self.file).st_mtime_ns)[self.row].as_py()
        except (OSError, ValueError, IndexError) as error:  # Arrow's errors are ValueErrors and OSErrors
            raise CorpusError(f"cannot be read: {self.file}: {error}") from error
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None:
            raise CorpusError(f"is not in {self.file}, which has no bytes of it")
        return content

    def state(self) -> str | None:
        try:
            found = os.stat(self.file)
        except OSError:
            return None
        return f"row {self.row} of group {self.group} of {found.st_size} bytes, changed {found.st_mtime_ns}"


@lru_cache(GROUPS_KEPT)
def _group(file: str, group: int, column: str, changed: int) -> Any:
    """The column of a row group. changed: when the file was, so that another state of it is another group."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(column)


def read(files: Sequence[Path], folder: Path) -> Corpus:
    """A row for each row of these files, in their order; its id is the path of its file below `folder` and a number.

    Raises:
        CorpusError: a file is damaged or has no column of audio, or pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - it is an extra
    except ImportError as error:
        raise CorpusError("Parquet files need their library: pip install 'w2v_attn[datasets]'") from error
    rows = tuple(row for file in files for row in _rows(file, file.relative_to(folder).with_suffix("").as_posix()))
    if not rows:
        raise CorpusError(f"{files[0]} lists no recordings")
    return Corpus(rows)


def _rows(file: Path, id: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            groups = [opened.metadata.row_group(group) for group in range(opened.num_row_groups)]
            features = _features(schema)
            audio = _audio_column(file, schema, features)
            columns = {
                field: next((name for name in names if name in schema.names), None)
                for field, names in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS), ("speaker", SPEAKER_COLUMNS))
            }
            holds_paths = pyarrow.types.is_string(schema.field(audio).type)
            wanted = [name for name in (*columns.values(), audio if holds_paths else None) if name is not None]
            known = opened.read(columns=wanted).to_pydict() if wanted else {}
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file} cannot be read as Parquet: {error}") from error
    split = next(
        (split for name in (file.name, file.parent.name) for s, split in SPLITS.items() if name.startswith(s)), None
    )
    sizes = [_bytes_of(group, audio) // max(1, group.num_rows) for group in groups]
    places = ((group, row) for group, about in enumerate(groups) for row in range(about.num_rows))
    for number, (group, row) in enumerate(places):
        said: dict[str, Any] = {
            field: _value(known[name][number], features.get(name)) for field, name in columns.items() if name
        }
        name = f"{id}/{number:07d}"
        if holds_paths:
            record = {**said, "path": known[audio][number], "split": split, "id": name}
            yield row_of(record, file.parent, f"{file}, row {number}")
        else:
            content = Cell(os.fspath(file), group, row, audio, sizes[group])
            yield Row(name, file / f"{number:07d}", **said, split=split, content=content)


def _bytes_of(group: Any, column: str) -> int:
    """What a column takes in a row group, of which a struct has several."""
    parts = map(group.column, range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face says of the columns, by their names."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):  # somebody else wrote it
        return {}


def _audio_column(file: Path, schema: Any, features: dict[str, Any]) -> str:
    import pyarrow

    def holds_bytes(name: str) -> bool:
        kind = schema.field(name).type
        return pyarrow.types.is_binary(kind) or (pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    declared = (name for name, kind in features.items() if kind.get("_type") == "Audio")
    found = next((name for name in (*declared, *PATH_COLUMNS) if name in schema.names), None)
    if found is not None and (holds_bytes(found) or pyarrow.types.is_string(schema.field(found).type)):
        return found
    raise CorpusError(
        f"{file} has no column of audio: expected bytes or paths in one of {', '.join(PATH_COLUMNS)}, found "
        f"{', '.join(schema.names)}"
    )


def _value(value: Any, feature: Any) -> str | None:
    if value is None:
        return None
    names = feature.get("names") if isinstance(feature, dict) else None
    return names[value] if names and isinstance(value, int) else str(value)
