"""Run statistics: counts of outcomes, throughput and time left, in memory that does not grow with the rows."""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from w2v_attn.runs.outcomes import Outcome, kind_of

# Outcomes arrive in bursts, one for each batch. An outcome within this many seconds of the previous one belongs to the
# same burst; a row that does not go through the model takes no longer than this.
BURST_GAP = 0.05
# With small models a burst never ends: it is split after this many seconds.
MAX_BURST = 1.0
# Throughput is measured over this many seconds of computing: a shared machine does not keep its speed.
RECENT_SECONDS = 300.0


class _Mark(NamedTuple):
    """The state of a run at the end of a burst. spent: seconds of computing; share, rows, seconds: what they gave."""

    spent: float
    share: float
    rows: int
    seconds: float


class Throughput:
    """Throughput and time left of a run, measured on rows that went through the model.

    Cached rows pass in a millisecond, and so do most failures: they say nothing about the time of the others.

    Args:
        total: The amount of work, in the unit of the shares given to `add`; including cached rows if these are not
            known in advance.
        now: A clock, in seconds.
    """

    def __init__(self, total: float, *, now: Callable[[], float] = time.monotonic):
        self._total, self._now = total, now
        self._before = now()
        self._spent = self._gone = self._kept = self._computed = self._seconds = 0.0
        self._begun = 0.0  # the burst at hand, in seconds spent
        self._rows = 0
        self._marks = deque([_Mark(0.0, 0.0, 0, 0.0)])

    def add(self, outcome: Outcome[Any], share: float) -> None:
        """Add an outcome and its share of the total; 0 for cached rows if the total does not include them."""
        now = self._now()
        waited, self._before = now - self._before, now
        if waited > BURST_GAP:
            self._mark()
            self._begun = self._spent + waited
        elif self._spent - self._begun > MAX_BURST:
            self._mark()
            self._begun = self._spent
        passed_by = outcome.cached or outcome.reason is not None
        self._spent += max(0.0, waited - BURST_GAP) if passed_by else waited
        if outcome.cached:
            self._kept += share
        else:
            self._gone += share
        if not passed_by:
            self._computed += share
            self._rows += 1
            self._seconds += outcome.seconds

    def _mark(self) -> None:
        if self._spent > self._marks[-1].spent:
            self._marks.append(_Mark(self._spent, self._computed, self._rows, self._seconds))
        while len(self._marks) > 2 and self._spent - self._marks[1].spent > RECENT_SECONDS:
            self._marks.popleft()

    @property
    def done(self) -> float:
        """Share of the work that is done, 0 to 1."""
        computed = self._total - self._kept
        return min(1.0, self._gone / computed) if computed > 1e-9 * self._total else 1.0  # sums are rounded

    @property
    def recordings_per_second(self) -> float | None:
        """Recordings per second; None if not known yet."""
        return self._speed("rows")

    @property
    def times_real_time(self) -> float | None:
        """Seconds of audio per second; None if not known yet."""
        return self._speed("seconds")

    @property
    def left(self) -> float | None:
        """Seconds left; None if not known yet."""
        speed = self._speed("share")
        return max(0.0, self._total - self._kept - self._gone) / speed if speed else None

    def _speed(self, what: str) -> float | None:
        first, last = self._marks[0], self._marks[-1]
        if last.spent == first.spent:
            return None
        return (getattr(last, what) - getattr(first, what)) / (last.spent - first.spent)


def flag_name(flag: str) -> str:
    """Return a warning about a recording without what is its own: the same for all recordings of its kind."""
    return flag.split(" (")[0]


def count_conversions(conversions: Counter[str]) -> str:
    """Return counts of conversions in a line: "12 resampled from 8 kHz, 3 mixed from stereo"."""
    return ", ".join(f"{count:,} {conversion}" for conversion, count in conversions.most_common(MAX_CONVERSIONS))


# Conversions that a summary names, the most frequent ones.
MAX_CONVERSIONS = 6
# Failures that are listed one by one; above that, a table by kind says more.
MAX_LISTED = 20


class RunStats:
    """Counts of outcomes.

    Attributes:
        reached: Rows with an outcome.
        cached: Rows whose result is from an earlier run.
        failed: Rows without a result.
        seconds: Seconds of audio that went through the model.
        flags: How often each warning about a recording occurred.
        conversions: How often each conversion of a recording occurred, such as "resampled from 8 kHz".
        failure_kinds: How often each of `run_error.FAILURE_KINDS` occurred.
        kinds: How often each reason occurred, with its numbers masked.
        examples: Kind -> id and reason of its first failure.
        first_failures: Ids and reasons of the first `MAX_LISTED` failures.
        underflowed: Values that became 0 when results were stored.
        underflowed_rows: Rows with such values.
    """

    def __init__(self) -> None:
        self.reached = self.cached = self.failed = 0
        self.seconds = 0.0
        self.flags: Counter[str] = Counter()
        self.conversions: Counter[str] = Counter()
        self.failure_kinds: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, str]] = {}
        self.first_failures: list[tuple[str, str]] = []
        self.underflowed = self.underflowed_rows = 0

    @property
    def written(self) -> int:
        """Rows that this run computed."""
        return self.reached - self.cached - self.failed

    def add(self, outcome: Outcome[Any]) -> None:
        """Count an outcome."""
        self.reached += 1
        self.cached += outcome.cached
        if not outcome.cached:
            self.seconds += outcome.seconds
        for flag in outcome.flags:
            self.flags[flag_name(flag)] += 1
        self.conversions.update(outcome.conversions)
        self.underflowed += outcome.underflowed
        self.underflowed_rows += outcome.underflowed > 0
        if outcome.reason is not None:
            self.failure_kinds[outcome.kind or "other"] += 1
            self._failed(outcome.row.id, outcome.reason)

    def _failed(self, row_id: str, reason: str) -> None:
        self.failed += 1
        kind = kind_of(reason)
        self.kinds[kind] += 1
        self.examples.setdefault(kind, (row_id, reason))
        if len(self.first_failures) < MAX_LISTED:
            self.first_failures.append((row_id, reason))
