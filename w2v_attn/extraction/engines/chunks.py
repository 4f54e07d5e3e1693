"""What a process is given at once: whole blocks of the list, so that its batches are those of any other."""

from collections.abc import Iterator, Sequence
from itertools import islice

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.feeding import BLOCK, blocks

# A process works on a chunk on its own, so at its end it waits for the last results; many blocks make that rare. Few
# make that all end at about the same time.
MOST_BLOCKS = 16
SHARES = 4


def chunks(rows: Sequence[Row], workers: int) -> Iterator[list[Row]]:
    """The list in parts of whole blocks: large ones first, and towards the end smaller ones."""
    left, found = -(-len(rows) // BLOCK), blocks(rows)
    while left:
        count = min(MOST_BLOCKS, max(1, left // (SHARES * workers)))
        yield [row for block in islice(found, count) for row in block]
        left -= count
