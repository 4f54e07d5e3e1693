"""`list_several`: the recordings of several sources as one corpus; `matches`: the files that a glob names."""

import glob
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row, channel_id

# Files that list recordings even beside audio files; .txt and .json are notes and settings there.
LIST_EXTENSIONS = frozenset((".csv", ".tsv", ".jsonl", ".lst", ".tar", ".parquet"))


def matches(audio: str) -> list[str] | None:
    """Return the files and folders that a glob such as `*.mp3` or `corpus/**/*.wav` names, sorted; None if it is none.

    The name of a file or folder that exists is no glob, whatever it contains.
    """
    expanded = os.path.expanduser(audio)
    if not glob.has_magic(expanded) or os.path.lexists(expanded) or "://" in audio:
        return None
    return sorted(glob.glob(expanded, recursive=True))


def list_several(sources: Sequence[str], list_one: Callable[[str], Corpus]) -> Corpus:
    """Return the recordings of several sources, in their order. A recording that two of them name occurs once.

    Ids are relative to the folder that all sources are in; those of several channels of one recording name the channel,
    such as a.wav@left. Beside audio files, files that are neither audio nor lists are counted, as in a folder.

    Args:
        sources: Recordings, folders, manifests, tar shards or data sets.
        list_one: Returns the recordings of one of them.

    Raises:
        CorpusError: there is no source, two recordings have the same id, or a source cannot be listed.
    """
    if not sources:
        raise CorpusError("found no recordings: the list of sources is empty")
    paths = [Path(os.path.abspath(os.path.expanduser(source))) for source in sources]
    existing = [os.fspath(path.parent) for path in paths if path.exists()]
    common = os.path.commonpath(existing) if existing else ""
    has_audio = any(path.suffix.lower() in AUDIO_EXTENSIONS and path.is_file() for path in paths)
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    for source, path in zip(sources, paths, strict=True):
        extension = path.suffix.lower()
        if has_audio and path.is_file() and extension not in AUDIO_EXTENSIONS | LIST_EXTENSIONS:
            skipped[extension or "no extension"] += 1
            continue
        corpus = list_one(source)
        skipped += corpus.skipped
        prefix = _prefix(source, path, common)
        rows += (replace(row, id=(prefix / row.id).as_posix()) for row in corpus.rows)
    return Corpus(tuple(_unique(rows)), skipped)


def _prefix(source: str, path: Path, common: str) -> PurePosixPath:
    """Return what the ids of a source begin with: where it is, below the folder that all are in."""
    if not path.exists():  # a data set of the hub, shards
        return PurePosixPath(source.partition(":")[2] if source.startswith("hub:") else "")
    folder = path if path.is_dir() else path.parent
    return PurePosixPath(Path(os.path.relpath(folder, common)).as_posix())


def _unique(rows: Sequence[Row]) -> Iterable[Row]:
    """Return the rows with unique ids, each recording once.

    Raises:
        CorpusError: two recordings have the same id.
    """
    alike: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        alike[_without_channel(row)].append(row)
    found: dict[str, Row] = {}
    for row in rows:
        id = _without_channel(row)
        channels = {other.channel for other in alike[id] if other is row or _is_same(row, other)}
        named = replace(row, id=channel_id(id, row.channel)) if len(channels) > 1 else row
        there = found.setdefault(named.id, named)
        if there is not named and not _is_same(there, named):
            raise CorpusError(
                f"two recordings have the id {named.id}: {there.path} and {named.path}. Give them different ids"
            )
    return found.values()


def _without_channel(row: Row) -> str:
    """Return the id of a row, without the channel that a list with several channels of the file gave it."""
    return row.id if row.channel is None else row.id.removesuffix(channel_id("", row.channel))


def _is_same(one: Row, other: Row) -> bool:
    """Return whether two rows are the same part of the same file, whatever its channel."""
    files = [os.path.realpath(row.path) for row in (one, other)]
    return files[0] == files[1] and (one.offset, one.duration) == (other.offset, other.duration)
