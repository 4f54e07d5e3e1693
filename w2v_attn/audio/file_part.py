"""A part of an open file as a file of its own, which libraries can read and seek in."""

import io
import os
from typing import Any


class FilePart(io.RawIOBase):
    """The bytes of an open file from `start` to `end`, without moving the position of the file.

    Args:
        file: The file.
        start, end: Offsets in bytes.
        prefix: Bytes that are put in front of them.
    """

    def __init__(self, file: Any, start: int, end: int, prefix: bytes = b""):
        self._descriptor, self._start, self._prefix = file.fileno(), start, prefix
        self._size = len(prefix) + max(0, end - start)
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
        content = self._prefix[self._at : self._at + wanted]
        if len(content) < wanted:
            at = self._at + len(content) - len(self._prefix)
            content += os.pread(self._descriptor, wanted - len(content), self._start + at)
        view[: len(content)] = content
        self._at += len(content)
        return len(content)
