"""Which recordings are trained on together, in each forward pass of the whole run."""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

from torch.utils.data import Sampler

WINDOW = 20  # batches whose recordings are sorted by length before they are cut


class Batches(Sampler[list[tuple[int, int]]]):
    """The batches of one process, from the first update to the last: lists of (index, number).

    index: of the recording. number: how often the recording was trained on before; without classes, the pass.

    All of them follow from the lengths, the classes and the seed alone, so that a run that was killed goes on with the
    same ones. Each pass over the data is shuffled anew, sorted by length inside windows, and cut where a batch, padded,
    would be longer than its budget. With several processes, pass m of process r of w is batch w·m + r of the same list:
    two processes see in one update what one process sees in two accumulated passes.

    lengths: seconds of each recording, as long as it can get. seconds: the budget of a batch.
    count: forward passes of this process. classes: of each recording; in a pass every class then has as many recordings
    as the most common one: each of them equally often, and the rest drawn anew. None: each recording once.
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
        classes: Sequence[Hashable] | None = None,
    ):
        self._lengths, self._seconds, self._count, self._seed = lengths, seconds, count, seed
        self._rank, self._processes = rank, processes
        members = defaultdict[Hashable, list[int]](list)
        for index in range(len(lengths)):
            members[classes[index] if classes else None].append(index)
        self._members = list(members.values())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        given = position = number = 0
        before: Counter[int] = Counter()
        while given < self._count:
            for batch in self.one_pass(number):
                numbered = []
                for index in batch:
                    numbered.append((index, before[index]))
                    before[index] += 1
                if position % self._processes == self._rank and given < self._count:
                    yield numbered
                    given += 1
                position += 1
            number += 1

    def one_pass(self, number: int) -> list[list[int]]:
        """The batches of a pass over all recordings."""
        rng = random.Random(f"{self._seed} {number}")
        indices = self._indices(rng)
        order = rng.sample(indices, len(indices))
        mean = sum(self._lengths[i] for i in order) / len(order)
        window = WINDOW * max(1, int(self._seconds / mean))
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            batches += self._cut(sorted(order[start : start + window], key=lambda i: self._lengths[i]))
        rng.shuffle(batches)
        return batches

    def _indices(self, rng: random.Random) -> list[int]:
        """The recordings of a pass, some of them several times where classes are balanced."""
        most = max(map(len, self._members))
        indices: list[int] = []
        for members in self._members:
            times, rest = divmod(most, len(members))
            indices += members * times + rng.sample(members, rest)
        return indices

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
