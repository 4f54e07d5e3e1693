"""What became of the rows of a run, in numbers: memory that does not grow with them."""

from collections import Counter
from typing import Any

from w2v_attn.runs.outcomes import Outcome, kind_of

# Failures that are kept one by one; of more, the kinds say more.
FEW = 20


class Tally:
    """Counts of outcomes.

    reached: rows with an outcome; of these, `kept` have the result of a run before this one, and `failed` have none.
    seconds: of audio that went through the model. flags: how often something was odd. kinds: how often a reason of each
    kind was given. examples: id and reason of the first of each kind. few: the same of the first `FEW` failures.
    underflowed: values that became 0 when results were stored. with_underflow: rows that have some.
    """

    def __init__(self) -> None:
        self.reached = self.kept = self.failed = 0
        self.seconds = 0.0
        self.flags: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, str]] = {}
        self.few: list[tuple[str, str]] = []
        self.underflowed = self.with_underflow = 0

    @property
    def written(self) -> int:
        """Rows that this run computed."""
        return self.reached - self.kept - self.failed

    def take(self, outcome: Outcome[Any]) -> None:
        """One outcome more."""
        self.reached += 1
        self.kept += outcome.kept
        if not outcome.kept:
            self.seconds += outcome.seconds
        for flag in outcome.flags:
            self.flags[flag.split(" (")[0]] += 1
        self.underflowed += outcome.underflowed
        self.with_underflow += outcome.underflowed > 0
        if outcome.reason is not None:
            self._failed(outcome.row.id, outcome.reason)

    def _failed(self, row_id: str, reason: str) -> None:
        self.failed += 1
        kind = kind_of(reason)
        self.kinds[kind] += 1
        self.examples.setdefault(kind, (row_id, reason))
        if len(self.few) < FEW:
            self.few.append((row_id, reason))
