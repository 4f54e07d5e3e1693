"""Atomic writing: a file exists whole or not at all, whatever happens meanwhile: a kill, a full disk, a power cut."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"
_OURS = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")


def temporary_name(path: Path) -> Path:
    """Return a random name in the folder of `path`: a rename there is atomic, and no two writers share a name."""
    return path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what is written there is renamed to `path` at the end, and removed after an error.

    Until the end a file that is already at `path` is unchanged.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        _publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it may be renamed already: the interruption came just after
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write bytes to `path` atomically; see `written_whole`."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _publish(temporary: Path, path: Path) -> None:
    """Flush a file to the disk, rename it, and flush the rename."""
    _sync(temporary)
    os.replace(temporary, path)
    try:
        descriptor = os.open(path.parent, os.O_RDONLY)
    except OSError:  # not every file system lets a folder be opened
        return
    try:
        os.fsync(descriptor)  # the rename itself
    finally:
        os.close(descriptor)


def remove_leftovers(folders: Iterable[Path]) -> int:
    """Remove temporary files that killed writers left in these folders, and return how many.

    Nobody may be writing to the folders meanwhile.

    Raises:
        OSError: a folder cannot be read or written.
    """
    count = 0
    for folder in folders:
        try:
            left = [entry.path for entry in os.scandir(folder) if _OURS.fullmatch(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for path in left:
            os.unlink(path)
        count += len(left)
    return count


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
