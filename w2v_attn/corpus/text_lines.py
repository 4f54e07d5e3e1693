"""The lines of text files as people have them: UTF-8 and UTF-16, with and without BOM, any line end, gzip."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from w2v_attn.corpus.rows import CorpusError

NOT_UTF8 = "is not UTF-8: save the list as UTF-8"
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a text file. Bytes that are not UTF-8 become lone surrogates.

    Raises:
        CorpusError: the file cannot be read.
    """
    try:
        with path.open("rb") as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == _GZIP else raw)
            start = file.read(4)
            file.seek(0)
            for number, line in enumerate(io.TextIOWrapper(file, _encoding(start), "surrogateescape"), 1):
                yield number, line.rstrip("\n")
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} cannot be read: its text ends within a character ({error.reason})") from error


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends.

    Raises:
        CorpusError: the file cannot be read, or a line is not UTF-8; the text names the line.
    """
    for number, line in numbered_lines(path):
        if not is_utf8(line):
            raise CorpusError(f"{path}, line {number}: {NOT_UTF8}")
        yield line


def first_line(path: Path) -> str:
    """Return the first line that is not empty; an empty string where there is none, or the file cannot be read."""
    try:
        return next((line for _, line in numbered_lines(path) if line.strip()), "")
    except CorpusError:
        return ""


def is_utf8(text: str) -> bool:
    """Return whether text holds no lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encoding(start: bytes) -> str:
    for bom, encoding in _BOMS:
        if start.startswith(bom):
            return encoding
    if len(start) == 4 and start[1] == start[3] == 0 != start[0]:
        return "utf-16-le"  # ASCII characters of two bytes, without a BOM
    return "utf-8"
