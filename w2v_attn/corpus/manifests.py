"""The rows of manifests: CSV, TSV, JSON lines and plain lists of paths, among them NeMo's and Common Voice's."""

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from w2v_attn.corpus.rows import Corpus, CorpusError, Row, read_lines

MANIFEST_EXTENSIONS = frozenset(".csv .tsv .jsonl .json .txt .lst".split())
# Accepted names of each column: ours first, then NeMo's, Common Voice's and other common ones.
PATH_COLUMNS = ("path", "audio_filepath", "audio", "file", "file_name", "wav")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text")
LABEL_COLUMNS = ("label", "command", "class", "keyword", "intent", "emotion", "language")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
# Beginnings of the names of a data set's splits and files. Others (Common Voice's "invalidated") are in no split.
SPLIT_PREFIXES = {"train": "train", "valid": "valid", "dev": "valid", "test": "test"}


def read_manifest(manifest: Path, root: Path | None) -> Corpus:
    """Return the rows of a manifest.

    Args:
        manifest: The file.
        root: The folder of its paths; None: the manifest's own, or Common Voice's clips/.

    Raises:
        CorpusError: a row is malformed, or there is none; the text names the line.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, record in _records(manifest):
        if root is None:
            root = _folder_of_paths(manifest, record)
        row = row_of(record, root, f"{manifest}, line {line}")
        if row.id in lines:
            raise CorpusError(f"{manifest}, line {line}: the id {row.id} is already used in line {lines[row.id]}")
        lines[row.id] = line
        rows.append(row)
    if not rows:
        raise CorpusError(f"{manifest} lists no recordings")
    return Corpus(tuple(rows))


def _folder_of_paths(manifest: Path, first: dict[str, object]) -> Path:
    """Return the folder of the paths: Common Voice names its recordings without their folder clips/."""
    if "client_id" in first and (manifest.parent / "clips").is_dir():
        return manifest.parent / "clips"
    return manifest.parent


def _records(manifest: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line number, columns) of each row of a manifest."""
    kind = manifest.suffix.lower()
    if kind in (".csv", ".tsv"):
        # Tab-separated values have no quoting: Common Voice's sentences contain unescaped quotation marks.
        form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
        reader = csv.DictReader(read_lines(manifest), **form)
        try:
            reader.fieldnames = _columns(manifest, reader.fieldnames or ())
            for record in reader:
                if None in record or None in record.values():
                    raise CorpusError(
                        f"{manifest}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns "
                        f"({', '.join(reader.fieldnames or ())}); quote values that hold the separator"
                    )
                yield reader.line_num, dict(record)
        except csv.Error as error:
            raise CorpusError(f"{manifest}, line {reader.line_num}: cannot be read as {kind}: {error}") from error
        return
    for number, line in enumerate(read_lines(manifest), 1):
        if not line.strip():
            continue
        if kind not in (".jsonl", ".json"):
            yield number, {"path": line.strip()}
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(f"{manifest}, line {number}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{manifest}, line {number}: expected an object with a path, got {line.strip()[:60]}")
        yield number, record


def _columns(manifest: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns, without spaces around them."""
    names = [name.strip() for name in header]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CorpusError(f"{manifest}, line 1: the column {twice} occurs twice: rename one of them")
    return names


def row_of(record: dict[str, object], root: Path, where: str) -> Row:
    """Return the row that a record of a manifest describes.

    Args:
        record: Column names and values.
        root: The folder that paths are relative to.
        where: The beginning of error messages: the manifest and the line.

    Raises:
        CorpusError: the path is missing, leaves the root or is a URL; the id cannot name a file; a time is not a
            number of seconds.
    """
    column = next((name for name in PATH_COLUMNS if name in record), None)
    if column is None:
        raise CorpusError(f"{where}: expected a column `path`, found {', '.join(map(str, record))}")
    value = record[column]
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise CorpusError(f"{where}: the path is {value!r}, expected the path of a file")
    if "://" in value:
        raise CorpusError(f"{where}: {value} is a URL, expected a path on this machine: fetch it first")
    path, folder = root / value, os.path.abspath(root)
    # The path as written is checked; a symbolic link inside the root may point anywhere.
    inside = os.path.relpath(os.path.abspath(path), folder)
    if inside.split(os.sep)[0] == os.pardir:
        raise CorpusError(
            f"{where}: {value} leaves the folder {folder}. Name the folder that all paths are in: root=/that/folder"
        )
    given = record.get("id")
    name = Path(inside).as_posix() if given in (None, "") else _checked_id(given, where)
    offset = _seconds(record, "offset", where) or 0.0
    duration = _seconds(record, "duration", where)
    # NeMo and others state the duration of the whole file: without an offset it does not select a segment.
    return Row(
        name,
        path,
        offset,
        duration if "offset" in record else None,
        **fields_of(record, where),
    )


def fields_of(record: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return text, label, speaker and split of a record: strings, or None where it has none.

    Args:
        record: Column names and values.
        where: The beginning of error messages.

    Raises:
        CorpusError: the split has an unknown name.
    """
    return {
        "text": _field(record, TEXT_COLUMNS),
        "label": _field(record, LABEL_COLUMNS) or None,
        "speaker": _field(record, SPEAKER_COLUMNS) or None,
        "split": split_of(record, where),
    }


def _checked_id(given: object, where: str) -> str:
    name = PurePosixPath(str(given))
    if name.is_absolute() or ".." in name.parts or "\0" in str(given) or not name.name:
        raise CorpusError(
            f"{where}: the id {given!r} cannot name a file: expected letters, digits, and / between folders"
        )
    return name.as_posix()


def _field(record: Mapping[str, object], columns: tuple[str, ...]) -> str | None:
    value = next((record[name] for name in columns if name in record), None)
    return None if value is None else str(value)


def split_of(record: Mapping[str, object], where: str) -> str | None:
    """Return the split of a record as train, valid or test; None where it has none.

    Raises:
        CorpusError: the split has an unknown name.
    """
    value = record.get("split")
    if value in (None, ""):
        return None
    if str(value).lower() not in SPLITS:
        raise CorpusError(f"{where}: the split is {value!r}, expected train, valid or test")
    return SPLITS[str(value).lower()]


def _seconds(record: dict[str, object], column: str, where: str) -> float | None:
    value = record.get(column)
    if value in (None, ""):
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise CorpusError(f"{where}: {column} is {value!r}, expected seconds")
    return seconds
