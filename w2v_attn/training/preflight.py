"""Before training: every recording is read once, what cannot be trained on is dropped with its reason."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from w2v_attn.corpus.rows import Row
from w2v_attn.corpus.splits import Splits
from w2v_attn.runs.row_reader import read_row, source_state
from w2v_attn.training.errors import DataError
from w2v_attn.training.tasks.task import Task

READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Dropped:
    """A recording that is not used, of which split, and why."""

    row: Row
    split: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """splits: what can be used. seconds: split and id -> how long each is. dropped: what cannot, with its reason."""

    splits: Splits
    seconds: dict[str, float]
    dropped: tuple[Dropped, ...]


class Lengths:
    """How long recordings are, in samples, or why they cannot be read; kept in a file, so a run that goes on knows.

    A recording that changed since (by size or time, see `source_state`) is read again.
    """

    def __init__(self, path: Path, sample_rate: int):
        self._path, self._rate = path, sample_rate
        self._known: dict[str, list[object]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, *value = json.loads(line)
                except (json.JSONDecodeError, ValueError, TypeError):
                    continue  # the last line of a run that was killed
                self._known[key] = value

    def of(self, rows: Sequence[tuple[Row, float]], watch: Callable[[int], None]) -> list[int | str]:
        """Samples of each row, or the reason why there are none.

        rows: with the seconds that each may have. watch: is told after each how many are done.
        """
        found: list[int | str] = []
        pool = ThreadPoolExecutor(READERS)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                for key, stamp, value in pool.map(self._one, rows):
                    if self._known.get(key) != [stamp, value]:
                        self._known[key] = [stamp, value]
                        file.write(json.dumps([key, stamp, value]) + "\n")
                    found.append(value)
                    watch(len(found))
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _one(self, row_and_limit: tuple[Row, float]) -> tuple[str, str, int | str]:
        row, longest = row_and_limit
        key = f"{row.id} {row.path} {row.offset} {row.duration} {self._rate} {longest}"
        stamp = source_state(row) or ""  # where there is none, reading it says why
        known = self._known.get(key)
        if known is not None and known[0] == stamp != "":
            return key, stamp, known[1]  # type: ignore[return-value]
        try:
            recording = read_row(row, sample_rate=self._rate, max_duration=longest)
        except ValueError as error:
            return key, stamp, str(error)
        return key, stamp, len(recording.waveform)


def survey(
    splits: Splits,
    task: Task,
    samples: dict[str, int | str],
    *,
    sample_rate: int,
    frames_of: Callable[[int], int],
    least_samples: int,
    shortest_factor: float,
) -> Survey:
    """What of the splits can be used.

    samples: id (with its split before it) -> length or reason, see `Lengths`. frames_of: samples -> frames.
    shortest_factor: by how much augmentation may shorten a recording of the training split.

    What is only measured is dropped where it cannot be heard or has nothing to be compared with: that the model cannot
    say what it should is an error that counts.

    Raises:
        DataError: nothing is left to train on or to validate on; it says what was dropped and why.
    """
    kept: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    dropped: list[Dropped] = []
    for split, rows in named(splits):
        kept[split] = []
        for row in rows:
            length = samples[f"{split} {row.id}"]
            reason = length if isinstance(length, str) else None
            if isinstance(length, int):
                shortest = int(length * shortest_factor) if split == "train" else length
                if shortest < least_samples:
                    reason = f"is too short: {shortest} samples, at least {least_samples} are needed"
                elif split == "train":
                    reason = task.obstacle(row, frames_of(shortest))
                elif not task.is_labelled(row):
                    reason = task.obstacle(row, frames_of(length))
                seconds[f"{split} {row.id}"] = length / sample_rate
            if reason is None:
                kept[split].append(row)
            else:
                dropped.append(Dropped(row, split, reason))
    for split, rows in named(splits):
        if rows and not kept[split]:
            reasons = Counter(d.reason for d in dropped if d.split == split).most_common(3)
            listed = "; ".join(f"{count} × {reason}" for reason, count in reasons)
            raise DataError(f"nothing can be used of the recordings to {split} on: {listed}")
    return Survey(Splits(*(tuple(kept[name]) for name in ("train", "valid", "test"))), seconds, tuple(dropped))


def named(splits: Splits) -> Iterator[tuple[str, tuple[Row, ...]]]:
    """The splits with their names."""
    yield from (("train", splits.train), ("valid", splits.valid), ("test", splits.test))


def check_overlap(splits: Splits) -> None:
    """Raises DataError where a recording stands in two splits: what is measured then is not what it seems."""
    seen: dict[tuple[str, float], str] = {}
    for split, rows in named(splits):
        for row in rows:
            key = (os.path.abspath(row.path), row.offset)
            if seen.setdefault(key, split) != split:
                raise DataError(
                    f"{row.id} is in the data to {seen[key]} on and in those to {split} on: take it out of one"
                )


def describe(found: Survey, task: Task) -> Iterator[tuple[str, str]]:
    """(name, value) of what people want to know before hours of training."""
    for split, rows in named(found.splits):
        if not rows:
            continue
        lengths = [found.seconds[f"{split} {row.id}"] for row in rows]
        middle = float(np.median(lengths))
        speakers = {row.speaker for row in rows if row.speaker is not None}
        by = f", {len(speakers)} speakers" if speakers else ""
        yield (
            split,
            f"{len(rows):,} recordings, {hours(sum(lengths))}{by}; "
            f"shortest {min(lengths):.2f} s, median {middle:.2f} s, longest {max(lengths):.2f} s",
        )
    counts = task.counts(found.splits.train)
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(40))
    more = f" … and {len(counts) - 40} more" if len(counts) > 40 else ""
    yield f"{len(counts)} {'labels' if task.name == 'classification' else 'symbols'}", listed + more
    empty = sum(not task.reference(row) for row in found.splits.train)
    if empty:
        yield "empty texts", f"{empty} recordings to train on, in which nothing is said"
    for reason, count in Counter(_kind(dropped.reason) for dropped in found.dropped).most_common(8):
        yield "dropped", f"{count} × {reason}"


def _kind(reason: str) -> str:
    """A reason without what differs from one recording to the next."""
    return reason.split(": ")[0]


def hours(seconds: float) -> str:
    """A length as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
