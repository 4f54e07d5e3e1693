"""Files that exist whole or not at all, whatever happens while they are written: a kill, a full disk, a power cut."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp-"
_OURS = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")


def temporary_name(path: Path) -> Path:
    """A name beside `path`, so that the last step is a rename; its own, so that two writers do not meet."""
    return path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a name to write a file under; what is there at the end comes under `path`, after an error nothing does.

    What stood there before stands there until then.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind then.
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
    """The same for content that is at hand."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def _publish(temporary: Path, path: Path) -> None:
    """Brings a file that is written under its own name, for good."""
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
    """Removes what writers left in these folders that were killed -> how many files. Nobody may be writing there.

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
