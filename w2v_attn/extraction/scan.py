"""A scan of the corpus before a run, without decoding: how much audio there is, and how much of it is done."""

import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from w2v_attn.audio.audio_decoder import AudioDecoder
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction.store import OutputIndex
from w2v_attn.runs.row_reader import row_duration, row_weight

# Most recordings whose headers are read; and seconds that reading headers may take, and likewise reading file sizes.
MAX_SAMPLED, SCAN_SECONDS = 300, 3.0


@dataclass(frozen=True)
class Sampled:
    """A row whose header was read.

    Attributes:
        row: The row.
        weight: See `row_weight`.
        duration: Seconds; None if it is not a usable recording.
        there: Whether valid features of it exist.
    """

    row: Row
    weight: float
    duration: float | None
    there: bool


@dataclass(frozen=True)
class Scan:
    """What is known of the rows of a run before it starts.

    Attributes:
        rows: How many rows there are.
        there: About how many of them have valid features.
        weights, weights_there: Total weight of all rows and of those with features, by kind of file.
        sample: Rows whose headers were read, spread evenly over the list.
    """

    rows: int
    there: int
    weights: dict[str, float]
    weights_there: dict[str, float]
    sample: tuple[Sampled, ...]

    def total(self, value: Callable[[Sampled], float], *, missing: bool) -> float:
        """Estimate the sum of a value over all rows, or over the missing ones.

        For each kind of file, the known bytes of all rows times the value per byte in the sample: so long recordings
        and compressed ones count as what they are.
        """
        return sum(
            (self.weights[kind] - missing * self.weights_there.get(kind, 0.0)) * self._ratio(kind, value)
            for kind in self.weights
        )

    def share(self, holds: Callable[[Sampled], bool], *, missing: bool) -> float:
        """Return the share of the sample, or of its missing rows, that has a property; 0 to 1."""
        sample = [sampled for sampled in self.sample if not (missing and sampled.there)]
        return sum(map(holds, sample)) / max(1, len(sample))

    def spread(self, value: Callable[[Sampled], float]) -> float:
        """Return half the 95 % confidence interval of the total over all rows, as a share of that total."""
        total, variance = self.total(value, missing=False), 0.0
        for kind, weight in self.weights.items():
            members, ratio = self._members(kind), self._ratio(kind, value)
            seen = sum(sampled.weight for sampled in members)
            if not seen < weight or len(members) < 2:
                continue
            off = sum((value(sampled) - ratio * sampled.weight) ** 2 for sampled in members) / (len(members) - 1)
            count = len(members) * weight / seen
            variance += count**2 * (1 - len(members) / count) * off / len(members)
        return 1.96 * math.sqrt(variance) / total if total > 0 else 0.0

    def _ratio(self, kind: str, value: Callable[[Sampled], float]) -> float:
        members = self._members(kind) or self.sample
        weight = sum(sampled.weight for sampled in members)
        return sum(map(value, members)) / weight if weight > 0 else 0.0

    def _members(self, kind: str) -> list[Sampled]:
        return [sampled for sampled in self.sample if _kind(sampled.row) == kind]


def scan_rows(rows: Sequence[Row], index: OutputIndex, decoder: AudioDecoder) -> Scan:
    """Scan rows: the sizes of all files, and the headers of some, read by the decoder. Writes nothing.

    Args:
        rows: The rows.
        index: The existing features in the output.
        decoder: The decoder that reads headers.
    """
    weights: defaultdict[str, float] = defaultdict(float)
    weights_there: defaultdict[str, float] = defaultdict(float)
    seen = found = 0
    ends = time.monotonic() + SCAN_SECONDS
    for row in evenly(rows, MAX_SAMPLED):
        weight = row_weight(row)
        weights[_kind(row)] += weight
        seen += 1
        if index.contains(row):
            weights_there[_kind(row)] += weight
            found += 1
        if time.monotonic() > ends:
            break
    sample = _sample(rows, index, decoder)
    # Some existing features may be damaged, or their sources have changed.
    counted = sum(sampled.there for sampled in sample)
    existing = sum(index.contains(sampled.row) for sampled in sample)
    valid = counted / existing if existing else 1.0
    scale = len(rows) / seen if seen else 0.0  # a rank may have no rows
    return Scan(
        rows=len(rows),
        there=round(found * scale * valid),
        weights={kind: weight * scale for kind, weight in weights.items()},
        weights_there={kind: weight * scale * valid for kind, weight in weights_there.items()},
        sample=tuple(sample),
    )


def evenly(rows: Sequence[Row], count: int) -> Iterator[Row]:
    """Yield every row once: first `count` of them, one of each part of the list, then the others. Deterministic.

    Random within a part, and in the order of parts: if every second row of a list is of another kind, a regular step
    would see one kind only.
    """
    if not rows:
        return
    chance = random.Random(0)
    count = min(count, len(rows))
    bounds = [part * len(rows) // count for part in range(count + 1)]
    first = [chance.randrange(begin, end) for begin, end in pairwise(bounds)]
    others = list(set(range(len(rows))) - set(first))
    for places in (first, others):
        chance.shuffle(places)
        yield from (rows[place] for place in places)


def _sample(rows: Sequence[Row], index: OutputIndex, decoder: AudioDecoder) -> list[Sampled]:
    sample: list[Sampled] = []
    ends = time.monotonic() + SCAN_SECONDS
    for row in evenly(rows, MAX_SAMPLED):
        try:
            duration = row_duration(row, decoder.read_duration)
        except ValueError:  # AudioError, or an error of the row's own content
            duration = 0.0
        if duration is not None:  # a header without a duration: other files of its kind represent it
            sample.append(Sampled(row, row_weight(row), duration or None, index.is_valid(row)))
        if len(sample) == MAX_SAMPLED or time.monotonic() > ends:
            break
    return sample


def _kind(row: Row) -> str:
    """Return the kind of a row's file: within a kind, bytes predict seconds."""
    return "part" if row.duration is not None else row.path.suffix.lower()
