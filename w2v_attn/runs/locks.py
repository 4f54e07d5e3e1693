"""File locks that end with the process that holds them, however it ends."""

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

# The lock file of an output folder.
LOCK = ".lock"

# File systems without locks: some FUSE and cluster file systems, and NFS if its lock service is not running.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})


class Lock:
    """A locked file, exclusive or shared. Created by `acquire_lock`.

    The kernel locks the open file. Over NFS the lock also works between machines (Linux sends it to the server), unless
    the mount has the option `nolock` or `local_lock`.

    Attributes:
        is_effective: Whether the lock excludes others; False if the file system has no locks.
    """

    def __init__(self, path: Path, descriptor: int, *, is_effective: bool):
        self._path, self._descriptor, self.is_effective = path, descriptor, is_effective

    def write_holder(self, text: str) -> None:
        """Write into the file who holds the lock. Raises OSError."""
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def downgrade(self) -> None:
        """Turn an exclusive lock into a shared one."""
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Release the lock; the last holder removes the file.

        A process that has opened the file meanwhile notices that it is no longer the one at this path.
        """
        try:
            if self.is_last():
                self._path.unlink(missing_ok=True)
        except OSError:  # the disk is gone or read-only; closing the descriptor ends the lock
            pass
        os.close(self._descriptor)

    def is_last(self) -> bool:
        """Return whether nobody else holds the lock; it is then exclusive. Only before `release`: it may be lost."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            return error.errno in _NO_LOCKS
        return True


class InUseError(Exception):
    """Another process holds the lock. The text says who, if known."""


def acquire_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Lock:
    """Lock a file, which is created if it does not exist.

    Args:
        path: The file.
        shared: Whether others may hold the lock too, if they also share it.
        wait: Whether to wait for other holders.

    Raises:
        InUseError: another process holds the lock, and `wait` is False.
        OSError: the file cannot be created.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        # Opened for writing: NFS gives no exclusive lock on a file that is open for reading.
        descriptor, is_effective = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), True
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise InUseError(holder or "it has just begun") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            is_effective = False
            logger.warning("%s cannot be locked (%s): make sure that no second run writes there", path, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return Lock(path, descriptor, is_effective=is_effective)
        os.close(descriptor)  # its holder has just ended and removed the file
