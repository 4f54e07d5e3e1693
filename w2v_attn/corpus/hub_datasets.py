"""The rows of Hugging Face data sets. Recordings stay encoded until a run decodes them like those of other corpora."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from w2v_attn.corpus.columns import SPLIT_PREFIXES, Columns, as_label, fields_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row, Unusable

HUB_PREFIX = "hub:"
_opening = threading.Lock()


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


@dataclass(frozen=True, slots=True)
class DatasetCell:
    """The recording in a row of a data set, which each process opens once.

    Attributes:
        source: What the data set was loaded from.
        part: The name of the split; None for a data set without splits.
        column: The column of audio.
        row: Index in the split.
        size: Bytes of the encoded recording.
        fingerprint: The data set's own; another one means that the data set changed since it was listed.
    """

    source: str
    part: str | None
    column: str
    row: int
    size: int
    fingerprint: str

    def __call__(self) -> bytes:
        with _opening:  # the second thread finds it in the cache
            cells = _opened(self.source, self.part, self.column, self.fingerprint)
        return cells[self.row]["bytes"].as_py()

    def state(self) -> str | None:
        return f"row {self.row} of the data set {self.fingerprint}"


@lru_cache(64)
def _opened(source: str, part: str | None, column: str, fingerprint: str) -> Any:
    """Return the column of a data set in this process; its files are mapped into memory, not read."""
    found = _load(source)
    found = found if part is None else found[part]
    if found._fingerprint != fingerprint:
        raise CorpusError(f"cannot be read: the data set {source} changed since it was listed")
    return _column(found, column)


def read_dataset(source: str, columns: Columns) -> Corpus:
    """Return the rows of a data set.

    Args:
        source: A folder that `save_to_disk` wrote, or `hub:OWNER/NAME[/CONFIG][/SPLIT]`.
        columns: Which column is what.

    Raises:
        CorpusError: the data set does not exist, there is no network, or it has no recordings.
    """
    return _corpus(_load(source), source, columns)


def _load(source: str) -> Any:
    datasets = _library()
    if not source.startswith(HUB_PREFIX):
        try:
            return datasets.load_from_disk(source)
        except Exception as error:  # Arrow, JSON and file errors of many kinds
            raise CorpusError(f"{source} cannot be read as a data set: {error}") from error
    parts = source.removeprefix(HUB_PREFIX).split("/")
    config, split = [*parts[2:4], None, None][:2]
    try:
        return datasets.load_dataset("/".join(parts[:2]), config, split=split)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(
            f"{source} cannot be loaded: {reason}. Expected hub:OWNER/NAME[/CONFIG][/SPLIT]; without network, name "
            "the folder of a data set that was saved with save_to_disk"
        ) from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise CorpusError("Hugging Face data sets need their library: pip install 'w2v_attn[datasets]'") from error
    return datasets


def _corpus(found: Any, source: str, columns: Columns) -> Corpus:
    parts = found.items() if hasattr(found, "items") else [(None, found)]
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for name, part in parts:
        split = next((split for start, split in SPLIT_PREFIXES.items() if name and name.startswith(start)), None)
        if name is not None and split is None:
            skipped[f"rows of {name}"] += len(part)
        else:
            rows += _rows(part, name, split, source, columns)
    if rows and all(row.unusable_reason for row in rows):
        raise CorpusError(f"{source}, {rows[0].unusable_reason}")
    if not rows:
        raise CorpusError(f"{source} lists no recordings of a split that begins with {', '.join(SPLIT_PREFIXES)}")
    return Corpus(tuple(rows), skipped)


def _rows(part: Any, name: str | None, split: str | None, source: str, columns: Columns) -> Iterator[Row]:
    import datasets

    audio = next((name for name, kind in part.features.items() if isinstance(kind, datasets.Audio)), None)
    found = columns.of(tuple(part.features))
    audio = columns.chosen.get("path") or audio or found.get("path")
    if missing := [name for name in (audio, *columns.named) if name and name not in part.features]:
        raise CorpusError(f"{source} has no column {', '.join(missing)}; it has {', '.join(part.features)}")
    if audio is None:
        raise CorpusError(f"{source} has no column of audio; it has {', '.join(part.features)}")
    wanted = {found[field] for field in ("text", "label", "speaker", "split", "channel") if field in found}
    known = {column: _values(part, column) for column in part.features if column in wanted}
    known |= {column: _column(part, column).to_pylist() for column in columns.values}
    before = f"{name}/" if name else ""
    for number, (path, size) in enumerate(_recordings(part, audio)):
        fields: dict[str, Any] = {"split": split}
        content = None
        if size is not None:
            content = DatasetCell(source, name, audio, number, size, part._fingerprint)
            path = f"{source}/{before}{number:07d}{Path(path or '').suffix}"
        elif not path:
            content = Unusable(f"row {number}: has no recording in its column {audio}")
            path = f"{source}/{before}{number:07d}"
        try:
            stated = fields_of({column: values[number] for column, values in known.items()}, columns)
            fields = stated | {"split": stated["split"] or split}
        except CorpusError as error:
            content = Unusable(f"row {number}: {error}")
        yield Row(f"{before}{number:07d}", Path(path), **fields, content=content)


def _values(part: Any, column: str) -> list[str | None]:
    kind = part.features[column]
    inner: Any = getattr(kind, "feature", None)
    if hasattr(kind, "int2str"):
        named = kind.int2str
    elif hasattr(inner, "int2str"):
        named = lambda numbers: as_label([inner.int2str(number) for number in numbers])  # noqa: E731
    else:
        named = as_label
    return [None if value is None else named(value) for value in _column(part, column).to_pylist()]


def _recordings(part: Any, column: str) -> Iterator[tuple[str | None, int | None]]:
    """Yield (path, number of bytes) of each recording without reading it; the number is None for a file of its own."""
    import pyarrow.compute
    import pyarrow.types

    cells = _column(part, column)
    if not pyarrow.types.is_struct(cells.type):
        yield from ((path, None) for path in cells.to_pylist())
        return
    compute: Any = pyarrow.compute  # its functions are created at import: type checkers do not see them
    sizes = compute.binary_length(compute.struct_field(cells, "bytes"))
    yield from zip(compute.struct_field(cells, "path").to_pylist(), sizes.to_pylist(), strict=True)


def _column(part: Any, column: str) -> Any:
    """Return a column as it is stored in the files, which are mapped into memory."""
    return part.select_columns([column]).with_format("arrow")[:].column(column)
