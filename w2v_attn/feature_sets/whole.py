"""Files that are whole under their name, or not there at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"


def temporary_name(path: Path) -> Path:
    """A name beside `path`, so that the last step is a rename; its own, so that two writers do not meet."""
    return path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a name to write a file under; what is there at the end comes under `path`, after an error nothing does.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Brings a file that is written under its own name, for good."""
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    with suppress(OSError):  # not every file system lets a folder be opened
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
