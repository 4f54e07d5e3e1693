"""What a process is given at once."""

from collections.abc import Iterator, Sequence

from w2v_attn.runs.rank import Part

# A process works on a chunk on its own, so at its end it waits for the last results; many parts make that rare. Few
# make that all end at about the same time.
MOST_PARTS = 16
SHARES = 4


def chunks(parts: Sequence[Part], workers: int) -> Iterator[Sequence[Part]]:
    """The parts in order: many at once at first, and towards the end one by one."""
    first = 0
    while first < len(parts):
        count = min(MOST_PARTS, max(1, (len(parts) - first) // (SHARES * workers)))
        yield parts[first : first + count]
        first += count
