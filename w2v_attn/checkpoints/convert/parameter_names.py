"""Names of parameters in other formats beside Hugging Face's: one table for each format, read both ways."""

import re
from collections.abc import Sequence

# What may follow the name of a module.
LEAVES = r"(?P<leaf>(?:\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?)"

Pairs = Sequence[tuple[str, str]]


class Names:
    """A table of names.

    pairs: (their name, Hugging Face's), of a module or of a parameter; `{n}` stands for a number. Where several of
        theirs have one of Hugging Face's, `theirs` gives the first.
    """

    def __init__(self, pairs: Pairs):
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in pairs]
        self._to_theirs = [(_pattern(ours), theirs) for theirs, ours in pairs]

    def ours(self, name: str) -> str | None:
        """Hugging Face's name for one of theirs; None: it has no place there."""
        return _translated(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Their name for one of Hugging Face's; None: they have no place for it."""
        return _translated(name, self._to_theirs)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{n\}", r"(?P<n>\d+)") + LEAVES)


def _translated(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, other in table:
        if found := pattern.fullmatch(name):
            return other.replace("{n}", found.groupdict().get("n") or "") + found["leaf"]
    return None
