"""A part of an open file as a file of its own, which libraries can read and seek in."""

import io
import os
from typing import Any


class FilePart(io.RawIOBase):
    """The bytes of an open file from `start` to `end`, without moving the position of the file.

    Args:
        file: The file.
        start, end: Offsets in bytes.
        beginning: Bytes that are read in place of as many of the file.
    """

    def __init__(self, file: Any, start: int, end: int, beginning: bytes = b""):
        self._descriptor, self._start, self._size, self._beginning = file.fileno(), start, end - start, beginning
        self._at = 0

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        content = os.pread(self._descriptor, wanted, self._start + self._at)
        if self._at < len(self._beginning):
            replaced = self._beginning[self._at : self._at + len(content)]
            content = replaced + content[len(replaced) :]
        view[: len(content)] = content
        self._at += len(content)
        return len(content)
