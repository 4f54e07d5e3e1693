"""A folder, with all that is in it -> rows."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus import parquet, shards
from w2v_attn.corpus.rows import AUDIO_EXTENSIONS, Corpus, CorpusError, Row


def walk(folder: Path) -> Corpus:
    """Every recording below the folder, sorted by id; its label is the sub-folder that it lies in, if it does.

    Where there is none but tar shards, or Parquet files, those in them. Beside recordings these are only counted: they
    may be what the recordings were unpacked from.
    """
    rows, skipped = [], Counter()
    containers: dict[str, list[Path]] = {shards.EXTENSION: [], parquet.EXTENSION: []}
    for path in files(folder):
        extension = path.suffix.lower()
        hidden = path.name.startswith(".")
        # A folder that may not be searched is a row too: it cannot be read, and so it is named with its reason.
        if path.is_dir() or (extension in AUDIO_EXTENSIONS and not hidden):
            relative = path.relative_to(folder)
            label = relative.parent.name or None
            rows.append(Row(relative.as_posix(), path, label=label))
            continue
        skipped[extension or "no extension"] += 1
        if extension in containers and not hidden:
            containers[extension].append(path)
    for read in (shards, parquet):
        if not rows and (found := containers[read.EXTENSION]):
            corpus = read.read(sorted(found), folder)
            skipped[read.EXTENSION] -= len(found)
            return Corpus(corpus.rows, corpus.skipped + skipped)
    if not rows:
        found = ", ".join(f"{count} × {kind}" for kind, count in skipped.most_common(5)) or "nothing"
        raise CorpusError(
            f"found no audio in {folder} (it holds {found}). Looked for {' '.join(sorted(AUDIO_EXTENSIONS))}; files "
            "named otherwise can be listed in a manifest, where the content decides"
        )
    return Corpus(tuple(sorted(rows, key=lambda row: row.id)), skipped)


def files(folder: Path) -> Iterator[Path]:
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
