"""Lines of text files, with the line named where one cannot be read."""

from collections.abc import Iterator
from pathlib import Path

from w2v_attn.corpus.rows import CorpusError


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, one after the other, with their ends.

    Raises:
        CorpusError: it cannot be read, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{path}, line {number}: is not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error
