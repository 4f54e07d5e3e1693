"""Reading ahead of a model, and batching: threads read items, which are grouped by length within a budget of frames.

path → **read ahead → window → batch** → model. Which items share a batch depends on their order and their lengths
only, never on which thread is faster.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil
from typing import Generic, Protocol, TypeVar

# Budgets in a full window: enough to group similar lengths, and few enough to keep nearly the order of the corpus, so
# that results arrive steadily and the time left can be estimated.
WINDOW = 4
# A window never crosses a block of this many rows. So the batches of a block depend on nothing outside it: neither on
# recordings elsewhere that changed or could not be read, nor on which process has the other blocks.
ROWS_PER_BLOCK = 128
# Most recordings that wait for the model, however short they are.
MAX_WAITING = 4096
# Frames that may wait for the model even with a small budget: ten minutes at 50 Hz, 38 MB of samples.
MIN_FRAMES_AHEAD = 30_000
# Seconds between two checks for an interruption while waiting for a recording.
POLL_SECONDS = 0.1
# For a GPU, all cores but one may decode; beyond 16 the disk is the limit. On a CPU the model uses all cores: one
# thread decodes about a hundred times faster than real time, and the second one hides the latency of the disk.
MAX_READERS, CPU_READERS = 16, 2


class Sized(Protocol):
    """Something with a length. frames: its length in a batch; 0 if it does not go through the model."""

    @property
    def frames(self) -> int: ...


Source = TypeVar("Source")
Item = TypeVar("Item", bound=Sized)


def reader_threads(device: str) -> int:
    """Return how many threads decode for a model on this type of device ("cpu", "cuda", …)."""
    return min(CPU_READERS if device == "cpu" else MAX_READERS, max(1, _cores() - 1))


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ReadAhead(Generic[Source, Item]):
    """An iterator over items in the order of their sources; while open, threads read the next ones in advance.

    Args:
        sources: What the items are read from.
        read: Source -> item, called in one of the threads. Its errors are raised in place of the item.
        threads: How many threads read.
        max_items, max_frames: Most items and frames that were read and not taken yet. No thread starts another item
            above these, so memory is bounded by them and by the items being read, for any number of sources.
        stopped: Asked while waiting; when it returns True, the iteration ends.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        read: Callable[[Source], Item],
        *,
        threads: int,
        max_items: int,
        max_frames: int,
        stopped: Callable[[], bool],
    ):
        self._sources, self._read, self._stopped = sources, read, stopped
        self._max_items, self._max_frames = max_items, max_frames
        self._changed = threading.Condition()
        self._waiting: dict[int, Item | BaseException] = {}
        self._begun = self._taken = self._frames = 0
        self._closed = False
        # Daemon threads: a file system that hangs must not keep alive a process that received a second signal.
        self._threads = [threading.Thread(target=self._work, name=f"reader-{n}", daemon=True) for n in range(threads)]

    def __enter__(self) -> "ReadAhead[Source, Item]":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:  # each ends after its current item
            thread.join()

    def __iter__(self) -> Iterator[Item]:
        for number in range(len(self._sources)):
            with self._changed:
                while not self._stopped() and number not in self._waiting:
                    self._changed.wait(POLL_SECONDS)
                if self._stopped():
                    return
                item = self._waiting.pop(number)
                self._taken += 1
                if isinstance(item, BaseException):
                    raise item
                self._frames -= item.frames
                self._changed.notify_all()
            yield item

    def _work(self) -> None:
        while (number := self._begin()) is not None:
            self._put(number, self._attempt(self._sources[number]))

    def _attempt(self, source: Source) -> Item | BaseException:
        try:
            return self._read(source)
        except BaseException as error:
            return error

    def _put(self, number: int, item: Item | BaseException) -> None:
        with self._changed:
            self._waiting[number] = item
            self._frames += 0 if isinstance(item, BaseException) else item.frames
            self._changed.notify_all()

    def _begin(self) -> int | None:
        """Return the number of the next source once there is room for its item; None if there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._begun == len(self._sources) or self._has_room())
            if self._closed or self._begun == len(self._sources):
                return None
            self._begun += 1
            return self._begun - 1

    def _has_room(self) -> bool:
        # Sources are read in order. So if the next item to take has not been started, nothing waits, and there is room.
        return self._begun - self._taken < self._max_items and self._frames < self._max_frames


def batches(items: Iterable[Item], budget: int) -> Iterator[list[Item]]:
    """Yield all items in batches of similar length: at most `budget` frames, or a single item that has more.

    Items are collected in a window, sorted by length and split, the longest first: if memory is too small, that shows
    early. The first windows of a block are small, so that the model starts at once. An item without frames is a batch
    of its own, without delay.
    """
    window: list[Item] = []
    frames, size = 0, 1
    for number, item in enumerate(items):
        if number % ROWS_PER_BLOCK == 0 and number > 0:
            yield from _cut(window, budget)
            window, frames, size = [], 0, 1
        if item.frames == 0:
            yield [item]
            continue
        window.append(item)
        frames += item.frames
        if frames >= size * budget:
            yield from _cut(window, budget)
            window, frames, size = [], 0, min(2 * size, WINDOW)
    yield from _cut(window, budget)


def _cut(window: list[Item], budget: int) -> Iterator[list[Item]]:
    # Popped from the end: that is fast, and leaves the batch as the only reference to its items.
    window.sort(key=lambda item: item.frames)
    left = sum(item.frames for item in window)
    while window:
        share = left / ceil(left / max(1, budget))  # batches of equal size, without a small remainder
        batch = [window.pop()]
        frames = batch[0].frames
        while window and frames + window[-1].frames <= budget and frames < share:
            frames += window[-1].frames
            batch.append(window.pop())
        left -= frames
        yield batch
