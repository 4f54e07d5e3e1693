"""A file, a folder or a manifest -> rows, one for each recording, with an id that names its output."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

AUDIO_EXTENSIONS = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .caf .au .snd .sph .nist .w64 .rf64 "
    ".m4a .mp4 .webm .mkv .mka .mov .aac .wma .amr .3gp".split()
)
MANIFEST_EXTENSIONS = frozenset(".csv .tsv .jsonl .txt .lst".split())
# The column of the path: ours, NeMo's, and those seen most in other people's tables.
PATH_COLUMNS = ("path", "audio_filepath", "audio", "file", "file_name", "wav")


class CorpusError(ValueError):
    """What was named as audio cannot be listed. The text says what was expected, found, and the way out."""


@dataclass(frozen=True)
class Row:
    """One recording. id: a relative path with `/` between its parts, unique in its corpus. path: the file."""

    id: str
    path: Path


@dataclass(frozen=True)
class Corpus:
    """rows: as in the manifest, or sorted by id. skipped: files of a folder that are no audio, by extension."""

    rows: tuple[Row, ...]
    skipped: Counter[str] = field(default_factory=Counter)


def list_recordings(audio: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Corpus:
    """The recordings that `audio` names.

    audio: one recording; a folder, which is searched with all that is in it; or a manifest: .csv or .tsv with a column
        `path` and if wanted `id`, .jsonl with such keys, .txt or .lst with a path a line.
    root: the folder from which a manifest's paths are taken, and which they may not leave. Default: the manifest's.

    Raises:
        CorpusError: there is no such file, nothing in it, or a row of a manifest is wrong; it names the line.
    """
    path = Path(os.path.expanduser(audio))
    try:
        path.stat()
    except OSError as error:
        raise CorpusError(f"there is no file or folder {path} ({error.strerror})") from error
    if path.is_dir():
        return _walk(path)
    if path.suffix.lower() in MANIFEST_EXTENSIONS:
        return _read_manifest(path, Path(os.path.expanduser(root)) if root is not None else path.parent)
    return Corpus((Row(path.name, path),))


def _walk(folder: Path) -> Corpus:
    rows, skipped = [], Counter()
    for path in _files(folder):
        # A folder that may not be searched is a row too: it cannot be read, and so it is named with its reason.
        if path.is_dir() or (path.suffix.lower() in AUDIO_EXTENSIONS and not path.name.startswith(".")):
            rows.append(Row(path.relative_to(folder).as_posix(), path))
        else:
            skipped[path.suffix.lower() or "no extension"] += 1
    if not rows:
        found = ", ".join(f"{count} × {kind}" for kind, count in skipped.most_common(5)) or "nothing"
        raise CorpusError(
            f"found no audio in {folder} (it holds {found}). Looked for {' '.join(sorted(AUDIO_EXTENSIONS))}; files "
            "named otherwise can be listed in a manifest, where the content decides"
        )
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)), skipped)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, through symbolic links too, but no folder twice; last the folders that are closed."""
    seen: set[str] = set()
    closed: list[Path] = []
    for current, folders, names in os.walk(folder, followlinks=True, onerror=lambda e: closed.append(Path(e.filename))):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(current, name) for name in names)
    yield from closed


def _read_manifest(manifest: Path, root: Path) -> Corpus:
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, record in _records(manifest):
        row = _row(record, root, f"{manifest}, line {line}")
        if row.id in lines:
            raise CorpusError(f"{manifest}, line {line}: the id {row.id} is that of line {lines[row.id]} already")
        lines[row.id] = line
        rows.append(row)
    if not rows:
        raise CorpusError(f"{manifest} lists no recordings")
    return Corpus(tuple(rows))


def _records(manifest: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(line, columns) of each row of a manifest."""
    kind = manifest.suffix.lower()
    if kind in (".csv", ".tsv"):
        reader = csv.DictReader(_lines(manifest), delimiter="\t" if kind == ".tsv" else ",", strict=True)
        try:
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
    for number, line in enumerate(_lines(manifest), 1):
        if not line.strip():
            continue
        if kind != ".jsonl":
            yield number, {"path": line.strip()}
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(f"{manifest}, line {number}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{manifest}, line {number}: expected an object with a path, got {line.strip()[:60]}")
        yield number, record


def _lines(manifest: Path) -> Iterator[str]:
    try:
        with manifest.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{manifest}, line {number}: is not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise CorpusError(f"{manifest} cannot be read: {error.strerror or error}") from error


def _row(record: dict[str, object], root: Path, where: str) -> Row:
    column = next((name for name in PATH_COLUMNS if name in record), None)
    if column is None:
        raise CorpusError(f"{where}: expected a column `path`, found {', '.join(map(str, record))}")
    value = record[column]
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise CorpusError(f"{where}: the path is {value!r}, expected the path of a file")
    if "://" in value:
        raise CorpusError(f"{where}: {value} is a URL, expected a path on this machine: fetch it first")
    path = root / value
    # The path as written decides; a link inside the root may lead anywhere its owner put it.
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if inside.split(os.sep)[0] == os.pardir:
        raise CorpusError(
            f"{where}: {value} leaves the folder {root}. Name the folder that all paths are in: root=/that/folder"
        )
    given = record.get("id")
    if given in (None, ""):
        return Row(Path(inside).as_posix(), path)
    name = PurePosixPath(str(given))
    if name.is_absolute() or ".." in name.parts or "\0" in str(given) or not name.name:
        raise CorpusError(
            f"{where}: the id {given!r} cannot name a file: expected letters, digits, and / between folders"
        )
    return Row(name.as_posix(), path)
