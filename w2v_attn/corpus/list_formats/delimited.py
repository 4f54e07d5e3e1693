"""Tables with a header: comma-separated and tab-separated values, among them Common Voice's."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError, read_lines

EXTENSIONS = frozenset((".csv", ".tsv"))


def _read(path: Path, options: ListOptions) -> Corpus:
    return corpus_of(_records(path), path, options.root)


def _records(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    kind = path.suffix.lower()
    # Tab-separated values have no quoting: Common Voice's sentences contain unescaped quotation marks.
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    reader = csv.DictReader(read_lines(path), **form)
    try:
        reader.fieldnames = _columns(path, reader.fieldnames or ())
        for record in reader:
            if None in record or None in record.values():
                raise CorpusError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} columns "
                    f"({', '.join(reader.fieldnames or ())}); quote values that hold the separator"
                )
            yield reader.line_num, dict(record)
    except csv.Error as error:
        raise CorpusError(f"{path}, line {reader.line_num}: cannot be read as {kind}: {error}") from error


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns, without spaces around them."""
    names = [name.strip() for name in header]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CorpusError(f"{path}, line 1: the column {twice} occurs twice: rename one of them")
    return names


FORMAT = ListFormat("table", lambda path: path.suffix.lower() in EXTENSIONS, _read)
