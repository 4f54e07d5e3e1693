"""Which recordings are trained on together, in each forward pass of the whole run."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

WINDOW = 20  # batches whose recordings are sorted by length before they are cut


class Batches(Sampler[list[tuple[int, int]]]):
    """The batches of one process, from the first update to the last: lists of (index of the recording, pass).

    All of them follow from the lengths and the seed alone, so that a run that was killed goes on with the same ones.
    Each pass over the data is shuffled anew, sorted by length inside windows, and cut where a batch, padded, would be
    longer than its budget. With several processes, pass m of process r of w is batch w·m + r of the same list: two
    processes see in one update what one process sees in two accumulated passes.

    lengths: seconds of each recording, as long as it can get. seconds: the budget of a batch.
    count: forward passes of this process. repeats: how often each recording stands in a pass; None: once.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        seconds: float,
        count: int,
        *,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        repeats: Sequence[int] | None = None,
    ):
        self._lengths, self._seconds, self._count, self._seed = lengths, seconds, count, seed
        self._rank, self._processes = rank, processes
        self._indices = [i for i in range(len(lengths)) for _ in range(repeats[i] if repeats else 1)]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        given = position = number = 0
        while given < self._count:
            for batch in self.one_pass(number):
                if position % self._processes == self._rank and given < self._count:
                    yield [(index, number) for index in batch]
                    given += 1
                position += 1
            number += 1

    def one_pass(self, number: int) -> list[list[int]]:
        """The batches of a pass over all recordings."""
        rng = random.Random(f"{self._seed} {number}")
        order = rng.sample(self._indices, len(self._indices))
        mean = sum(self._lengths[i] for i in order) / len(order)
        window = WINDOW * max(1, int(self._seconds / mean))
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            batches += self._cut(sorted(order[start : start + window], key=lambda i: self._lengths[i]))
        rng.shuffle(batches)
        return batches

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        """Batches of neighbours; the last is the longest: its length times their number is what padding makes."""
        batch: list[int] = []
        for index in order:
            if batch and (len(batch) + 1) * self._lengths[index] > self._seconds:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
