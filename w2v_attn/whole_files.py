"""Files that exist whole or not at all, whatever happens while they are written: a kill, a full disk, a power cut."""

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")


def write_whole(path: Path, content: bytes) -> None:
    """Writes the content under `path`, in a folder that exists; what stood there before stands there until then.

    Raises:
        OSError: it cannot be written; nothing is left behind then.
    """
    # In the same folder, so that the last step is a rename; a name of its own, so that two writers do not meet.
    temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it may be renamed already: the interruption came just after
        raise
    _sync_folder(path.parent)


def remove_leftovers(folders: Iterable[Path]) -> int:
    """Removes what writers left in these folders that were killed -> how many files. Nobody may be writing there.

    Raises:
        OSError: a folder cannot be read or written.
    """
    count = 0
    for folder in folders:
        try:
            left = [entry.path for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for path in left:
            os.unlink(path)
        count += len(left)
    return count


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last. Not every file system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
