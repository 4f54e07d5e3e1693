"""Recordings that were found while listing, and are known to be none that can be used."""

from dataclasses import dataclass

from w2v_attn.corpus.rows import CorpusError


@dataclass(frozen=True, slots=True)
class Unusable:
    """The content of a recording that has none: a run names it with this reason, as it does what it cannot decode."""

    reason: str
    size: int = 0

    def __call__(self) -> bytes:
        raise CorpusError(self.reason)

    def state(self) -> str | None:
        return None
