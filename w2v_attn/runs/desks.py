"""The places where those who share a folder keep their records and ledgers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.ledger import read_lines, write_lines
from w2v_attn.runs.shares import Share

DESKS = ".shares"


def desk_of(output: Path, share: Share) -> Path:
    """The folder of a share."""
    return output / DESKS / f"{share.rank}-of-{share.world}"


def desks_of_others(output: Path, world: int) -> list[Path]:
    """Those of shares in another number of parts."""
    return [desk for desk in sorted((output / DESKS).glob("*-of-*")) if not desk.name.endswith(f"-of-{world}")]


def clear_desks(desks: Sequence[Path], output: Path, rows: Sequence[Row]) -> None:
    """Removes desks where nobody is at work; what failed there is not forgotten. Raises OSError."""
    if desks:
        lines = read_lines(output)
        for desk in desks:
            lines |= read_lines(desk)
        write_lines(output, in_order(lines, rows))
    for desk in desks:
        shutil.rmtree(desk)


def in_order(lines: dict[str, str], rows: Sequence[Row]) -> list[str]:
    """The lines of a ledger in the order of the rows."""
    return [lines[row.id] for row in rows if row.id in lines]
