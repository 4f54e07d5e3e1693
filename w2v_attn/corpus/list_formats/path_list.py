"""A list of paths, one a line."""

from pathlib import Path

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus
from w2v_attn.corpus.text_lines import NOT_UTF8, is_utf8, numbered_lines

EXTENSIONS = frozenset((".txt", ".lst", ".list"))


def _read(path: Path, options: ListOptions) -> Corpus:
    records = (
        Record(f"line {number}", {"path": line.strip()}, number, None if is_utf8(line) else NOT_UTF8)
        for number, line in numbered_lines(path)
        if line.strip()
    )
    return corpus_of(records, path, options)


FORMAT = ListFormat("list of paths", lambda path: path.suffix.lower() in EXTENSIONS, _read)
