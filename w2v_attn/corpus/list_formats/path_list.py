"""A list of paths, one a line."""

from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import corpus_of
from w2v_attn.corpus.rows import Corpus, read_lines

EXTENSIONS = frozenset((".txt", ".lst"))


def _read(path: Path, options: ListOptions) -> Corpus:
    return corpus_of(_records(path), path, options.root)


def _records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, {"path": line.strip()}


FORMAT = ListFormat("list of paths", lambda path: path.suffix.lower() in EXTENSIONS, _read)
