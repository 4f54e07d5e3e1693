"""How fast a run is, and how long it still takes."""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from w2v_attn.runs.outcomes import Outcome, kind_of

# Outcomes come in bursts, one for each batch. What follows the one before it within this time, in seconds, is of the
# same burst; and a row that went past the model takes no more than this.
BURST_GAP = 0.05
# Small models have no end of them: so many seconds are taken for one.
MAX_BURST = 1.0
# Seconds of computing whose speed counts: a machine that others use is not always as fast.
RECENT_SECONDS = 300.0


class _Mark(NamedTuple):
    """Where a run was at the end of a burst. spent: seconds of computing; share, rows, seconds: what that gave."""

    spent: float
    share: float
    rows: int
    seconds: float


class Throughput:
    """Speeds and time left of a run, from what went through the model alone.

    Rows that are kept from an earlier run go by in a millisecond, and so does most of what fails: they say nothing of
    the time that the others take.

    total: of what is to be computed, in any unit in which `take` is given shares of it; and of what is kept, where that
        is not known before.
    """

    def __init__(self, total: float, *, now: Callable[[], float] = time.monotonic):
        self._total, self._now = total, now
        self._before = now()
        self._spent = self._gone = self._kept = self._computed = self._seconds = 0.0
        self._begun = 0.0  # the burst at hand, in seconds spent
        self._rows = 0
        self._marks = deque([_Mark(0.0, 0.0, 0, 0.0)])

    def add(self, outcome: Outcome[Any], share: float) -> None:
        """One outcome more, and its share of the total: 0 of what is kept, where the total is without that."""
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
        """Of what is to be computed, 0 to 1."""
        computed = self._total - self._kept
        return min(1.0, self._gone / computed) if computed > 1e-9 * self._total else 1.0  # sums are rounded

    @property
    def recordings_per_second(self) -> float | None:
        """None: not known yet."""
        return self._speed("rows")

    @property
    def times_real_time(self) -> float | None:
        """Seconds of audio in a second; None: not known yet."""
        return self._speed("seconds")

    @property
    def left(self) -> float | None:
        """Seconds; None: not known yet."""
        speed = self._speed("share")
        return max(0.0, self._total - self._kept - self._gone) / speed if speed else None

    def _speed(self, what: str) -> float | None:
        first, last = self._marks[0], self._marks[-1]
        if last.spent == first.spent:
            return None
        return (getattr(last, what) - getattr(first, what)) / (last.spent - first.spent)


# Failures that are kept one by one; of more, the kinds say more.
MAX_LISTED = 20


class RunStats:
    """Counts of outcomes.

    reached: rows with an outcome; of these, `kept` have the result of a run before this one, and `failed` have none.
    seconds: of audio that went through the model. flags: how often something was odd. kinds: how often a reason of each
    kind was given. examples: id and reason of the first of each kind. few: the same of the first `MAX_LISTED` failures.
    underflowed: values that became 0 when results were stored. underflowed_rows: rows that have some.
    """

    def __init__(self) -> None:
        self.reached = self.cached = self.failed = 0
        self.seconds = 0.0
        self.flags: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, str]] = {}
        self.first_failures: list[tuple[str, str]] = []
        self.underflowed = self.underflowed_rows = 0

    @property
    def written(self) -> int:
        """Rows that this run computed."""
        return self.reached - self.cached - self.failed

    def add(self, outcome: Outcome[Any]) -> None:
        """One outcome more."""
        self.reached += 1
        self.cached += outcome.cached
        if not outcome.cached:
            self.seconds += outcome.seconds
        for flag in outcome.flags:
            self.flags[flag.split(" (")[0]] += 1
        self.underflowed += outcome.underflowed
        self.underflowed_rows += outcome.underflowed > 0
        if outcome.reason is not None:
            self._failed(outcome.row.id, outcome.reason)

    def _failed(self, row_id: str, reason: str) -> None:
        self.failed += 1
        kind = kind_of(reason)
        self.kinds[kind] += 1
        self.examples.setdefault(kind, (row_id, reason))
        if len(self.first_failures) < MAX_LISTED:
            self.first_failures.append((row_id, reason))
