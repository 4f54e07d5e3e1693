"""The folder of each rank below a run's output, where it keeps its record and its ledger."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.ledger import read_lines, write_lines
from w2v_attn.runs.rank import Rank

RANKS = ".ranks"


def rank_dir(output: Path, rank: Rank) -> Path:
    """Return the folder of a rank."""
    return output / RANKS / f"{rank.rank}-of-{rank.world_size}"


def other_rank_dirs(output: Path, world_size: int) -> list[Path]:
    """Return the folders of ranks of another world size."""
    return [
        folder for folder in sorted((output / RANKS).glob("*-of-*")) if not folder.name.endswith(f"-of-{world_size}")
    ]


def clear_rank_dirs(folders: Sequence[Path], output: Path, rows: Sequence[Row]) -> None:
    """Removes folders of ranks that do not run; keeps the failures listed there. Raises OSError."""
    if folders:
        lines = read_lines(output)
        for folder in folders:
            lines |= read_lines(folder)
        write_lines(output, in_order(lines, rows))
    for folder in folders:
        shutil.rmtree(folder)


def in_order(lines: dict[str, str], rows: Sequence[Row]) -> list[str]:
    """The lines of a ledger in the order of the rows."""
    return [lines[row.id] for row in rows if row.id in lines]
