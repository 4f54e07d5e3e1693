"""Checks before training: every recording is read once, and unusable ones are dropped with a reason."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from w2v_attn.audio.channels import MEAN, channel_number
from w2v_attn.corpus.rows import Row
from w2v_attn.corpus.splits import Splits
from w2v_attn.run_error import failure_kind
from w2v_attn.runs.row_reader import read_row, source_state
from w2v_attn.runs.run_stats import count_conversions, flag_name
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import DataError

READERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Examined:
    """What reading a recording once has shown.

    Attributes:
        samples: Its length at the model's sample rate.
        flags: Warnings about it.
        conversions: How it was converted; see `audio.channels.conversions`.
    """

    samples: int
    flags: tuple[str, ...] = ()
    conversions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unreadable:
    """A recording that cannot be read: the reason, and its kind (see `run_error.FAILURE_KINDS`)."""

    reason: str
    kind: str = "other"


@dataclass(frozen=True)
class Dropped:
    """A recording that is not used, its split, the reason, and the kind of the reason."""

    row: Row
    split: str
    reason: str
    kind: str = "other"


@dataclass(frozen=True)
class DataScan:
    """The usable and the dropped recordings of all splits.

    Attributes:
        splits: The usable recordings.
        seconds: "split id" -> duration.
        dropped: The other recordings.
        flags: How often each warning about a usable recording occurred.
        conversions: How often each conversion of a usable recording occurred.
    """

    splits: Splits
    seconds: dict[str, float]
    dropped: tuple[Dropped, ...]
    flags: Counter[str] = field(default_factory=Counter)
    conversions: Counter[str] = field(default_factory=Counter)


class LengthCache:
    """A file with what reading every recording has shown, or the reason why it cannot be read, for resumed runs.

    A recording that has changed (by size or time, see `source_state`) is read again.
    """

    def __init__(self, path: Path, sample_rate: int):
        self._path, self._rate = path, sample_rate
        self._known: dict[str, list[object]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, *value = json.loads(line)
                except (json.JSONDecodeError, ValueError, TypeError):
                    continue  # an incomplete last line of a killed run
                self._known[key] = value

    def of(self, rows: Sequence[tuple[Row, float]], watch: Callable[[int], None]) -> list[Examined | Unreadable]:
        """Return what each row holds, or the reason why it cannot be read.

        Args:
            rows: Rows with their maximum durations in seconds.
            watch: Called after each row with the number of rows done.
        """
        found: list[Examined | Unreadable] = []
        pool = ThreadPoolExecutor(READERS)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                for key, stamp, value in pool.map(self._one, rows):
                    if self._known.get(key) != [stamp, value]:
                        self._known[key] = [stamp, value]
                        file.write(json.dumps([key, stamp, value]) + "\n")
                    found.append(_as_scanned(value))
                    watch(len(found))
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _one(self, row_and_limit: tuple[Row, float]) -> tuple[str, str, list[Any]]:
        row, longest = row_and_limit
        key = f"{row.id} {row.path} {row.offset} {row.duration} {self._rate} {longest}"
        stamp = source_state(row) or ""  # if it is missing, reading it gives the reason
        known = self._known.get(key)
        if known is not None and known[0] == stamp != "" and isinstance(known[1], list):
            return key, stamp, known[1]
        try:
            recording = read_row(row, sample_rate=self._rate, max_duration=longest)
        except ValueError as error:
            return key, stamp, [str(error), failure_kind(error)]
        return key, stamp, [len(recording.waveform), [*recording.flags], [*recording.conversions]]


def _as_scanned(value: list[Any]) -> Examined | Unreadable:
    if isinstance(value[0], str):
        return Unreadable(value[0], value[1])
    return Examined(value[0], tuple(value[1]), tuple(value[2]))


def scan_splits(
    splits: Splits,
    task: Task,
    scanned: dict[str, Examined | Unreadable],
    *,
    sample_rate: int,
    frames_of: Callable[[int], int],
    min_samples: int,
    shortest_factor: float,
) -> DataScan:
    """Select the recordings that can be used.

    Recordings for validation and test are dropped only if they cannot be read or have no label; a reference that the
    model cannot produce counts as an error.

    Args:
        splits: All recordings.
        task: The task.
        scanned: "split id" -> what reading it has shown; see `LengthCache`.
        sample_rate: Hz.
        frames_of: Samples -> frames of the model.
        min_samples: The shortest length that the model accepts.
        shortest_factor: The factor by which augmentation may shorten a training recording.

    Raises:
        DataError: A split has no usable recording; the message lists the most common reasons.
    """
    kept: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    dropped: list[Dropped] = []
    flags, conversions = Counter[str](), Counter[str]()
    for split, rows in named_splits(splits):
        kept[split] = []
        for row in rows:
            found = scanned[f"{split} {row.id}"]
            if isinstance(found, Unreadable):
                dropped.append(Dropped(row, split, found.reason, found.kind))
                continue
            reason, kind = None, "other"
            length = found.samples
            shortest = int(length * shortest_factor) if split == "train" else length
            if shortest < min_samples:
                reason = f"is too short: {shortest} samples, at least {min_samples} are needed"
                kind = "too_short"
            elif split == "train":
                reason = task.unusable_reason(row, frames_of(shortest))
            elif not task.is_labelled(row):
                reason = task.unusable_reason(row, frames_of(length))
            if reason is not None and kind == "other" and not task.is_labelled(row):
                kind = "no_text"
            seconds[f"{split} {row.id}"] = length / sample_rate
            if reason is None:
                kept[split].append(row)
                flags.update(map(flag_name, found.flags))
                conversions.update(found.conversions)
            else:
                dropped.append(Dropped(row, split, reason, kind))
    for split, rows in named_splits(splits):
        if rows and not kept[split]:
            reasons = Counter(d.reason for d in dropped if d.split == split).most_common(3)
            listed = "; ".join(f"{count} × {reason}" for reason, count in reasons)
            raise DataError(f"no recording of the {split} split can be used: {listed}")
    usable = Splits(*(tuple(kept[name]) for name in ("train", "valid", "test")))
    return DataScan(usable, seconds, tuple(dropped), flags, conversions)


def named_splits(splits: Splits) -> Iterator[tuple[str, tuple[Row, ...]]]:
    """Yield (name, rows) of each split."""
    yield from (("train", splits.train), ("valid", splits.valid), ("test", splits.test))


def check_overlap(splits: Splits) -> None:
    """Raise DataError if a recording is in two splits, which would make the metrics meaningless."""
    seen: dict[tuple[tuple[str, float], int | None], str] = {}
    for split, rows in named_splits(splits):
        for row in rows:
            if row.unusable_reason is not None:
                continue
            channel = channel_number(MEAN if row.channel is None else row.channel)
            key = (row.beginning, channel)
            if seen.setdefault(key, split) != split:
                raise DataError(
                    f"{row.id} is in the {seen[key]} split and in the {split} split: remove it from one of them"
                )


def describe_data(found: DataScan, task: Task) -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows that describe the data: durations, speakers, symbols, flagged and dropped recordings."""
    for split, rows in named_splits(found.splits):
        if not rows:
            continue
        lengths = [found.seconds[f"{split} {row.id}"] for row in rows]
        middle = float(np.median(lengths))
        speakers = {row.speaker for row in rows if row.speaker is not None}
        by = f", {len(speakers)} speakers" if speakers else ""
        yield (
            split,
            f"{len(rows):,} recordings, {_duration_text(sum(lengths))}{by}; "
            f"shortest {min(lengths):.2f} s, median {middle:.2f} s, longest {max(lengths):.2f} s",
        )
    if task.head_reason:
        yield "head", task.head_reason
    yield from task.describe(found.splits.train)
    if found.conversions:
        yield "converted", count_conversions(found.conversions)
    for flag, count in found.flags.most_common():
        yield "flagged", f"{count:,} × {flag}"
    for reason, count in Counter(map(_kind, found.dropped)).most_common(8):
        yield "dropped", f"{count} × {reason}"
    yield from task.describe_dropped([dropped.row for dropped in found.dropped if dropped.split == "train"])


def _kind(dropped: Dropped) -> str:
    """Return a reason without the parts that differ between recordings: the line in the list, the details."""
    return dropped.reason.removeprefix(f"line {dropped.row.line}: ").split(": ")[0]


def _duration_text(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
