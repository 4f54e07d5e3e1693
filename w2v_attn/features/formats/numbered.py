"""Files with numbers, for layouts that have many recordings in each."""

import re
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

from w2v_attn.whole_files import written_whole

Opened = TypeVar("Opened")


class NumberedFiles:
    """`features-NUMBER.EXTENSION` in a folder, one after the other, each whole under its name or not there.

    digits: of the number.
    """

    def __init__(self, folder: Path, extension: str, digits: int):
        self._folder, self._extension, self._digits = folder, extension, digits
        self._count = 0
        self._open = ExitStack()

    def clear(self) -> None:
        """Removes those that are there: they are of the same request, which is made again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob(f"features-*.{self._extension}"):
            if re.fullmatch(rf"features-\d{{{self._digits}}}\.{self._extension}", old.name):
                old.unlink()

    def begin(self) -> Path:
        """The name to write the next one under, until it ends."""
        path = self._folder / f"features-{self._count:0{self._digits}d}.{self._extension}"
        return self._open.enter_context(written_whole(path))

    def enter(self, opened: AbstractContextManager[Opened]) -> Opened:
        """What writes to the file that was begun: it is closed before the file gets its name."""
        return self._open.enter_context(opened)

    def end(self) -> None:
        """The file that was begun comes under its name."""
        self._open.close()
        self._count += 1

    def drop(self, *error: object) -> None:
        """The file that was begun goes, after an error."""
        self._open.__exit__(*error)  # type: ignore[arg-type]
