"""Locks on files, that end with the process that holds them, however that ends."""

import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

# File systems that have no locks: some FUSE and cluster file systems, NFS whose lock service does not run.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})


class Lock:
    """A file that is held, alone or together with others that want no more. Made by `take`.

    The lock is the kernel's, on an open file. Over NFS it is_effective between machines too (Linux takes it to the server),
    unless the mount says `nolock` or `local_lock`.

    is_effective: whether it keeps others out; not where the file system has no locks.
    """

    def __init__(self, path: Path, descriptor: int, *, is_effective: bool):
        self._path, self._descriptor, self.is_effective = path, descriptor, is_effective

    def write_holder(self, text: str) -> None:
        """Writes down who holds it. Raises OSError."""
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)

    def downgrade(self) -> None:
        """Lets others in that share it."""
        with suppress(OSError):  # where there are no locks
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """The last one removes the file; whoever has opened it by then finds that it is no longer the one there."""
        try:
            if self.is_last():
                self._path.unlink(missing_ok=True)
        except OSError:  # the disk is gone or read-only; the lock itself ends with the descriptor
            pass
        os.close(self._descriptor)

    def is_last(self) -> bool:
        """Whether nobody else has it; then it is held alone from here on, and else perhaps no more: for who leaves."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            return error.errno in _NO_LOCKS
        return True


class InUseError(Exception):
    """Somebody else holds it. The text says who, if that is known."""


def acquire_lock(path: Path, *, shared: bool = False, wait: bool = False) -> Lock:
    """The lock on a file, which is made where there is none.

    Raises:
        InUseError: somebody holds it, and it was not to be waited for. OSError: the file cannot be made.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        # Open for writing, for NFS gives no exclusive lock on a file that is read.
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
            logger.warning("%s cannot be locked (%s): see that no second run writes there", path, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return Lock(path, descriptor, is_effective=is_effective)
        os.close(descriptor)  # its holder has just ended, and removed it
