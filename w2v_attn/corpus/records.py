"""Records of lists, one for each recording, become rows."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from w2v_attn.corpus.columns import PATH_COLUMNS, fields_of, seconds_of
from w2v_attn.corpus.rows import Corpus, CorpusError, Row


def corpus_of(records: Iterable[tuple[int, Mapping[str, object]]], source: Path, root: Path | None) -> Corpus:
    """Return the rows of a list.

    Args:
        records: (line number, columns) of each row.
        source: The list.
        root: The folder of its paths; None: the list's own, or Common Voice's clips/.

    Raises:
        CorpusError: a row is malformed, or there is none; the text names the line.
    """
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, record in records:
        if root is None:
            root = _folder_of_paths(source, record)
        row = row_of(record, root, f"{source}, line {line}")
        if row.id in lines:
            raise CorpusError(f"{source}, line {line}: the id {row.id} is already used in line {lines[row.id]}")
        lines[row.id] = line
        rows.append(row)
    if not rows:
        raise CorpusError(f"{source} lists no recordings")
    return Corpus(tuple(rows))


def _folder_of_paths(source: Path, first: Mapping[str, object]) -> Path:
    """Return the folder of the paths: Common Voice names its recordings without their folder clips/."""
    if "client_id" in first and (source.parent / "clips").is_dir():
        return source.parent / "clips"
    return source.parent


def row_of(record: Mapping[str, object], root: Path, where: str) -> Row:
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
    offset = seconds_of(record, "offset", where) or 0.0
    duration = seconds_of(record, "duration", where)
    # NeMo and others state the duration of the whole file: without an offset it does not select a segment.
    return Row(
        name,
        path,
        offset,
        duration if "offset" in record else None,
        **fields_of(record, where),
    )


def _checked_id(given: object, where: str) -> str:
    name = PurePosixPath(str(given))
    if name.is_absolute() or ".." in name.parts or "\0" in str(given) or not name.name:
        raise CorpusError(
            f"{where}: the id {given!r} cannot name a file: expected letters, digits, and / between folders"
        )
    return name.as_posix()
