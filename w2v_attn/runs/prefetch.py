"""What a model is fed: items read by threads ahead of it, in batches of like length within a budget of frames.

path → **read ahead → window → batch** → model. Which items make a batch depends on their order and their lengths
alone, never on which thread was quicker.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import ceil
from typing import Generic, Protocol, TypeVar

# Budgets that a full window holds: enough that like lengths meet, few enough that the order stays nearly that of the
# corpus, so that time left and results written grow as the corpus does.
WINDOW = 4
# A window ends after every so many recordings of the list, and begins anew. So the batches of such a block depend on
# nothing beyond it: neither on a recording elsewhere that was changed or could not be read, nor on who has the others.
ROWS_PER_BLOCK = 128
# Recordings that wait at most for the model, however short they are.
MAX_WAITING = 4096
# Frames that may wait for the model though the budget is small: ten minutes at 50 Hz, 38 MB of samples.
MIN_FRAMES_AHEAD = 30_000
# Seconds after which whoever waits for a recording asks whether it still should.
POLL_SECONDS = 0.1
# A GPU is fed by the cores that are not driving it; beyond these the disk is the limit. On a CPU the model has all
# cores: one thread decodes some hundred times faster than real time, the second one hides the disk's latency.
MAX_READERS, CPU_READERS = 16, 2


class Sized(Protocol):
    """Something with a length. frames: what it adds to a batch; 0: it goes past the model."""

    @property
    def frames(self) -> int: ...


Source = TypeVar("Source")
Item = TypeVar("Item", bound=Sized)


def reader_threads(device: str) -> int:
    """How many threads decode for a model on this type of device, "cpu" or another."""
    return min(CPU_READERS if device == "cpu" else MAX_READERS, max(1, _cores() - 1))


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ReadAhead(Generic[Source, Item]):
    """Items in the order of their tasks; while open, threads read the next ones before somebody asks.

    read: task -> item, in one of the threads. What it raises is raised where its item would come.
    max_items, max_frames: of items that were read and not taken yet; nobody begins another one beyond these, so that
        memory is bounded by them and by what the threads have in hand, whatever the number of tasks.
    stopped: asked while waiting; where it says so, no more items come.
    """

    def __init__(
        self,
        tasks: Sequence[Source],
        read: Callable[[Source], Item],
        *,
        threads: int,
        max_items: int,
        max_frames: int,
        stopped: Callable[[], bool],
    ):
        self._tasks, self._read, self._stopped = tasks, read, stopped
        self._max_items, self._max_frames = max_items, max_frames
        self._changed = threading.Condition()
        self._waiting: dict[int, Item | BaseException] = {}
        self._begun = self._taken = self._frames = 0
        self._closed = False
        # Daemons: a file system that hangs must not keep a process alive that was told twice to end.
        self._threads = [threading.Thread(target=self._work, name=f"reader-{n}", daemon=True) for n in range(threads)]

    def __enter__(self) -> "ReadAhead[Source, Item]":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:  # each ends after the item in its hands
            thread.join()

    def __iter__(self) -> Iterator[Item]:
        for number in range(len(self._tasks)):
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
            self._put(number, self._attempt(self._tasks[number]))

    def _attempt(self, task: Source) -> Item | BaseException:
        try:
            return self._read(task)
        except BaseException as error:
            return error

    def _put(self, number: int, item: Item | BaseException) -> None:
        with self._changed:
            self._waiting[number] = item
            self._frames += 0 if isinstance(item, BaseException) else item.frames
            self._changed.notify_all()

    def _begin(self) -> int | None:
        """The number of the next task, when there is room for its item; None: there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._begun == len(self._tasks) or self._has_room())
            if self._closed or self._begun == len(self._tasks):
                return None
            self._begun += 1
            return self._begun - 1

    def _has_room(self) -> bool:
        # Tasks are begun in order. So where the next item to take was not begun, nothing waits, and there is room.
        return self._begun - self._taken < self._max_items and self._frames < self._max_frames


def batches(items: Iterable[Item], budget: int) -> Iterator[list[Item]]:
    """All items, in batches of like length: at most `budget` frames together, or one item that has more alone.

    Items are gathered in a window, sorted by length in it, and cut: the longest first, for what does not fit into
    memory shows there. The first windows of a block are small, so that a model has something to do at once. An item
    without frames is a batch of its own, at once.
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
    # The next one last: there it is quickly taken, and whoever has the batch is the only one who holds it.
    window.sort(key=lambda item: item.frames)
    left = sum(item.frames for item in window)
    while window:
        share = left / ceil(left / max(1, budget))  # even batches: none that is a small rest
        batch = [window.pop()]
        frames = batch[0].frames
        while window and frames + window[-1].frames <= budget and frames < share:
            frames += window[-1].frames
            batch.append(window.pop())
        left -= frames
        yield batch
