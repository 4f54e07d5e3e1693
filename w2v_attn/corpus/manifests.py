"""Manifests -> rows: CSV, TSV, JSON lines, and plain lists of paths; NeMo's and Common Voice's among them."""

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from w2v_attn.corpus.rows import Corpus, CorpusError, Row
from w2v_attn.corpus.texts import read_lines

MANIFEST_EXTENSIONS = frozenset(".csv .tsv .jsonl .json .txt .lst".split())
# The names of each column: ours first, then NeMo's, Common Voice's, and those seen most in other people's tables.
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


def read_manifest(manifest: Path, root: Path | None) -> Corpus:
    """The rows of a manifest. root: the folder of its paths; None: the manifest's own, or Common Voice's clips/.

    Raises:
        CorpusError: a row is wrong, or there is none; it names the line.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, record in _records(manifest):
        if root is None:
            root = _folder_of_paths(manifest, record)
        row = row_of(record, root, f"{manifest}, line {line}")
        if row.id in lines:
            raise CorpusError(f"{manifest}, line {line}: the id {row.id} is that of line {lines[row.id]} already")
        lines[row.id] = line
        rows.append(row)
    if not rows:
        raise CorpusError(f"{manifest} lists no recordings")
    return Corpus(tuple(rows))


def _folder_of_paths(manifest: Path, first: dict[str, object]) -> Path:
    """Common Voice names its recordings without the folder clips/ that they are in."""
    if "client_id" in first and (manifest.parent / "clips").is_dir():
        return manifest.parent / "clips"
    return manifest.parent


def _records(manifest: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(line, columns) of each row of a manifest."""
    kind = manifest.suffix.lower()
    if kind in (".csv", ".tsv"):
        # Tab-separated values know no quoting: Common Voice's sentences hold quotation marks as they stand.
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
    """The names of the columns, without spaces around them."""
    names = [name.strip() for name in header]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CorpusError(f"{manifest}, line 1: the column {twice} is there twice")
    return names


def row_of(record: dict[str, object], root: Path, where: str) -> Row:
    """The row that a record of a manifest describes. where: what an error begins with.

    Raises:
        CorpusError: the path is none, leaves the root or is a URL; the id cannot name a file; a time is none.
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
    # The path as written decides; a link inside the root may lead anywhere its owner put it.
    inside = os.path.relpath(os.path.abspath(path), folder)
    if inside.split(os.sep)[0] == os.pardir:
        raise CorpusError(
            f"{where}: {value} leaves the folder {folder}. Name the folder that all paths are in: root=/that/folder"
        )
    given = record.get("id")
    name = Path(inside).as_posix() if given in (None, "") else _checked_id(given, where)
    offset = _seconds(record, "offset", where) or 0.0
    duration = _seconds(record, "duration", where)
    # NeMo and others state the duration of the whole file: without an offset it says nothing about a part.
    return Row(
        name,
        path,
        offset,
        duration if "offset" in record else None,
        **fields_of(record, where),
    )


def fields_of(record: Mapping[str, object], where: str) -> dict[str, Any]:
    """text, label, speaker and split of a row, strings or None, as a record says them. where: what errors begin with.

    Raises:
        CorpusError: the split is none.
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
    """train, valid or test, whatever its name. Raises CorpusError where it is none of them."""
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
