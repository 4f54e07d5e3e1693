"""Tables: comma-, semicolon- and tab-separated values with a header, among them Common Voice's and SpeechBrain's."""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2v_attn.corpus.columns import NAMES, Columns, looks_like_audio
from w2v_attn.corpus.list_formats.list_format import ListFormat, ListOptions
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.rows import Corpus, CorpusError
from w2v_attn.corpus.text_lines import NOT_UTF8, first_line, is_utf8, numbered_lines

TABLES, OTHERS = frozenset((".csv", ".tsv")), frozenset((".txt", ".lst", ".list"))
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
# Lines that a quoted value may span: an opening quote that is never closed costs its own line, not the file's rest.
MAX_RECORD_LINES = 100


def _recognises(path: Path) -> bool:
    extension = path.suffix.lower()
    if extension in TABLES:
        return True
    return extension in OTHERS and _is_table(first_line(path))


def _is_table(line: str) -> bool:
    """Return whether the first line of a text file is a header, or a path and a text: a.wav|Good morning."""
    if _is_excel_hint(line):
        return True
    for delimiter in DELIMITERS:
        names = [name.strip() for name in _split(line, delimiter)]
        found = Columns().of(names)
        if len(names) > 1 and len(found) > 1 and "path" in found:
            return True
    return any(_is_path_and_text(line.split(delimiter)) for delimiter in "|\t")


def _is_excel_hint(line: str) -> bool:
    """Return whether a line is Excel's own first one, which names the separator: sep=;"""
    return line.lower().startswith("sep=") and len(line.strip(" ")) == 5


def _is_path_and_text(fields: Sequence[str]) -> bool:
    return len(fields) == 2 and looks_like_audio(fields[0]) and not looks_like_audio(fields[1])


def _read(path: Path, options: ListOptions) -> Corpus:
    lines = Lines(path)
    table = _table(path, lines, options.columns)
    return corpus_of(_records(table, lines), path, options, folder=_folder(path, table))


def read_records(path: Path, columns: Columns) -> Iterator[Record]:
    """Yield the records of a table.

    Raises:
        CorpusError: it has no column of paths.
    """
    lines = Lines(path)
    return _records(_table(path, lines, columns), lines)


class Lines:
    """The numbered lines of a text file that are not empty; some may be put back."""

    def __init__(self, path: Path):
        self._lines = numbered_lines(path)
        self._returned: deque[tuple[int, str]] = deque()

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> tuple[int, str]:
        return self._returned.popleft() if self._returned else next(self._lines)

    def put_back(self, lines: Sequence[tuple[int, str]]) -> None:
        """Return these next, in their order."""
        self._returned.extendleft(reversed(lines))


@dataclass(frozen=True)
class _Table:
    """How the lines of a table are split, and the names of its columns."""

    delimiter: str
    quoted: bool
    names: tuple[str, ...]


def _table(path: Path, lines: Lines, columns: Columns) -> _Table:
    """Read the header of a table.

    Raises:
        CorpusError: there is no column of paths, or a column occurs twice.
    """
    start = next(((number, line) for number, line in lines if line.strip()), None)
    if start is None:
        raise CorpusError(f"{path} lists no recordings")
    number, line = start
    if _is_excel_hint(line):
        following = next(lines, (number + 1, ""))
        return _with_header(path, following, (line[4],), columns)
    usual = "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|"
    if columns.by_number(_split(line, ",")):
        lines.put_back([start])
        delimiter = max(usual, key=line.count)
        count = len(_split(line, delimiter))
        return _Table(delimiter, _is_quoted(line, delimiter), tuple(str(n + 1) for n in range(count)))
    for delimiter in "|\t":
        if _is_path_and_text(line.split(delimiter)) and not columns.chosen:
            lines.put_back([start])
            return _Table(delimiter, False, ("path", "text"))
    return _with_header(path, start, usual, columns)


def _with_header(path: Path, start: tuple[int, str], delimiters: Sequence[str], columns: Columns) -> _Table:
    number, line = start
    if not is_utf8(line):
        raise CorpusError(f"{path}, line {number}: {NOT_UTF8}")
    for delimiter in delimiters:
        names = tuple(name.strip() for name in _split(line, delimiter))
        if "path" in columns.of(names):
            if twice := next((name for name in names if name and names.count(name) > 1), None):
                raise CorpusError(f"{path}, line {number}: the column {twice} occurs twice: rename one of them")
            return _Table(delimiter, _is_quoted(line, delimiter), names)
    raise CorpusError(f"{path}, line {number}: {_unknown(line, max(delimiters, key=line.count), columns)}")


def _unknown(line: str, delimiter: str, columns: Columns) -> str:
    """Return what a table without a known column of paths looks like, and how to say what its columns are."""
    names = [name.strip() for name in _split(line, delimiter)]
    wanted = columns.chosen.get("path")
    expected = f"expected a column {wanted}, as {columns.prefix}columns says" if wanted else "expected a column `path`"
    looks = f"{expected}, found {', '.join(names)}. The line is {line.strip()[:120]!r}, "
    looks += f"{len(names)} columns between {DELIMITERS[delimiter]}. " if len(names) > 1 else "one column. "
    audio = next((number for number, name in enumerate(names, 1) if looks_like_audio(name)), None)
    if audio is not None:
        text = len(names) if audio != len(names) else max(1, audio - 1)  # between them is often a speaker
        return f"{looks}If there is no header, give the numbers of the columns: {_hint(columns, audio, text)}"
    other = names[1] if len(names) > 1 else None
    example = {"path": names[0], "text": other} if other else {"path": names[0]}
    return f"{looks}Name it path ({', '.join(NAMES['path'][1:6])} … are known), or say which it is: " + columns.hint(
        **example
    )


def _hint(columns: Columns, path: int, text: int) -> str:
    return columns.hint(path=str(path), text=str(text))


def _split(line: str, delimiter: str) -> list[str]:
    """Return the values of the first line."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return line.split(delimiter)


def _is_quoted(header: str, delimiter: str) -> bool:
    """Return whether values may be quoted.

    Tab-separated values have no quoting: Common Voice's sentences contain unescaped quotation marks.
    """
    return delimiter in ",;" or header.startswith('"')


def _records(table: _Table, lines: Lines) -> Iterator[Record]:
    names = table.names
    for number, line in lines:
        where = f"line {number}"
        if '"' in line and table.quoted:
            taken = [(number, line)]
            try:
                values = next(csv.reader(_following(taken, lines), delimiter=table.delimiter, strict=True))
                reason = None if len(values) == len(names) else _count_reason(table, values)
            except csv.Error as error:
                values, reason = [], f"cannot be read as a table with quoted values: {error}"
            if reason is not None:
                lines.put_back(taken[1:])
        else:
            values = line.split(table.delimiter)
            if not any(value.strip() for value in values):
                continue
            reason = None if len(values) == len(names) else _count_reason(table, values)
        if not is_utf8(line):
            reason = NOT_UTF8
        known = dict(zip(names, values, strict=False)) if reason is None else {}
        yield Record(where, known, number, reason)


def _following(taken: list[tuple[int, str]], lines: Lines) -> Iterator[str]:
    """Yield the first of the lines that are taken, then further ones, which are taken too."""
    yield f"{taken[0][1]}\n"
    while len(taken) < MAX_RECORD_LINES and (line := next(lines, None)) is not None:
        taken.append(line)
        yield f"{line[1]}\n"


def _count_reason(table: _Table, values: Sequence[str]) -> str:
    quote = "; quote values that hold the separator" if table.quoted else ""
    return f"expected {len(table.names)} columns ({', '.join(table.names)}), found {len(values)}{quote}"


def _folder(path: Path, table: _Table) -> Path:
    """Return the folder of the paths: Common Voice names its recordings without their folder clips/."""
    clips = path.parent / "clips"
    return clips if "client_id" in table.names and clips.is_dir() else path.parent


FORMAT = ListFormat("table", _recognises, _read)
