"""A disk that is full or fails, for runs that should survive it."""

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LARGE = 1 << 31


class Disk:
    """A file system in memory of any size; where that may not be mounted, a folder on which writing is made to fail."""

    def __init__(self, folder: Path, *, mounted: bool):
        self.folder, self.mounted, self.failing = folder, mounted, False

    def full_soon(self, chance: random.Random) -> None:
        """Leaves so little room that it does not last."""
        if self.mounted:
            used = os.statvfs(self.folder)
            taken = (used.f_blocks - used.f_bfree) * used.f_frsize
            self._resize(taken + chance.randrange(1 << 18))

    def mend(self) -> None:
        """Leaves room for everything."""
        if self.mounted:
            self._resize(LARGE)

    def _resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def make_fail(code: int, after: int) -> None:
    """From here on, in this process, the step of writing a file after so many fails, and all later ones."""
    left = after

    def failing(right):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(code, os.strerror(code))
            return right(*arguments)

        return call

    os.fsync, os.replace = failing(os.fsync), failing(os.replace)


CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)
