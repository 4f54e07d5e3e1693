"""The recordings below a folder, or in the tar shards or Parquet files that it holds."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListOptions
from w2v_attn.corpus.parquet_rows import PARQUET_EXTENSION, read_parquet_files
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row
from w2v_attn.corpus.tar_shards import TAR_EXTENSION, read_tar_shards


def list_folder(folder: Path, options: ListOptions | None = None) -> Corpus:
    """Return every recording below a folder, sorted by id; its label is the name of its sub-folder, if it is in one.

    In a folder without audio files, the recordings are those in its tar shards, else those in its Parquet files.
    Beside audio files, shards and Parquet files are only counted: the audio may have been unpacked from them.

    Raises:
        CorpusError: there is no audio, or the shards or Parquet files cannot be read.
    """
    rows, skipped = [], Counter()
    containers: dict[str, list[Path]] = {TAR_EXTENSION: [], PARQUET_EXTENSION: []}
    for path in walk_files(folder):
        extension = path.suffix.lower()
        hidden = path.name.startswith(".")
        # A folder without permission to search it becomes a row, so that a run reports it with the reason.
        if path.is_dir() or (extension in AUDIO_EXTENSIONS and not hidden):
            relative = path.relative_to(folder)
            label = relative.parent.name or None
            rows.append(Row(relative.as_posix(), path, label=label))
            continue
        skipped[extension or "no extension"] += 1
        if extension in containers and not hidden:
            containers[extension].append(path)
    for extension, read in ((TAR_EXTENSION, _read_tar_shards), (PARQUET_EXTENSION, read_parquet_files)):
        if not rows and (found := containers[extension]):
            corpus = read(sorted(found), folder, options)
            skipped[extension] -= len(found)
            return Corpus(corpus.rows, corpus.skipped + skipped)
    if not rows:
        found = ", ".join(f"{count} × {kind}" for kind, count in skipped.most_common(5)) or "nothing"
        raise CorpusError(
            f"found no audio in {folder} (it holds {found}). Looked for {' '.join(sorted(AUDIO_EXTENSIONS))}; list "
            "files with other extensions in a manifest: their content decides"
        )
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)), skipped)


def _read_tar_shards(shards: Sequence[Path], folder: Path, options: ListOptions | None) -> Corpus:
    return read_tar_shards(shards, folder, (options or ListOptions()).columns)


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, then the folders that cannot be read.

    Symbolic links are followed, but no folder is visited twice.
    """
    seen: set[str] = set()
    unreadable: list[Path] = []
    for current, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda e: unreadable.append(Path(e.filename))
    ):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(current, name) for name in names)
    yield from unreadable
