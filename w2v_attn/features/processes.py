"""What is open in one process and must not be used in another."""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Opened = TypeVar("Opened")


class PerProcess(Generic[Opened]):
    """Opens at the first use in each process: a worker that was forked gets its own, one that was spawned too.

    opener: can be pickled where this is to be.
    """

    def __init__(self, opener: Callable[[], Opened]):
        self._opener = opener
        # That of a parent is kept and not used: to close it would disturb the parent's.
        self._opened: dict[int, Opened] = {}

    def get(self) -> Opened:
        """That of this process."""
        process = os.getpid()
        if process not in self._opened:
            self._opened[process] = self._opener()
        return self._opened[process]

    def __getstate__(self) -> dict[str, object]:
        return {"_opener": self._opener, "_opened": {}}
