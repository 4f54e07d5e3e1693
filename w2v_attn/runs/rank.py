"""Rank and world size: which rows of a list each of several processes has, and where it keeps its records."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.failure_log import read_failures, write_failures
from w2v_attn.runs.prefetch import ROWS_PER_BLOCK

# Variables for rank, world size and local rank: of torchrun, and of a SLURM step (srun), not of a batch script.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Block:
    """Consecutive rows that one process does. Batches never cross blocks, so they do not depend on the ranks.

    Attributes:
        number: Position of the block in the list, from 0.
        rows: Its rows.
    """

    number: int
    rows: Sequence[Row]


def blocks_of(rows: Sequence[Row], rows_per_group: int = 1) -> list[Block]:
    """Return a list in blocks.

    Args:
        rows: The list.
        rows_per_group: Rows that one process must do; the size of a block is a multiple of it.
    """
    size = -(-ROWS_PER_BLOCK // rows_per_group) * rows_per_group
    return [Block(first // size, rows[first : first + size]) for first in range(0, len(rows), size)]


def rows_of(blocks: Iterable[Block]) -> list[Row]:
    """Return the rows of these blocks, in order."""
    return [row for block in blocks for row in block.rows]


@dataclass(frozen=True)
class Rank:
    """One process of several.

    It has every `world_size`-th block of the list. That depends on the list only, so processes need no communication.

    Attributes:
        rank: Number of the process, from 0.
        world_size: How many processes there are.
        local_rank: Number of the process on its machine, from 0.

    Raises:
        ValueError: rank is not from 0 to world_size - 1.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size must be 1 or above, got {self.world_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be from 0 to {self.world_size - 1} with world_size={self.world_size}, got {self.rank}"
            )

    def __str__(self) -> str:
        return f"{self.rank} of {self.world_size}"

    @property
    def is_alone(self) -> bool:
        """Whether there are no other ranks."""
        return self.world_size == 1

    def select(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """Return the blocks of this rank, in the order of the list."""
        return blocks[self.rank :: self.world_size]


ALONE = Rank()


def read_rank(rank: int | None, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the given rank, or else that of torchrun or of a SLURM step, or else 0 of 1.

    Raises:
        ValueError: only one of the two is given, or rank is not from 0 to world_size - 1.
    """
    if rank is not None and world_size is not None:
        return Rank(rank, world_size)
    for given, value, missing in (("rank", rank, "world_size"), ("world_size", world_size, "rank")):
        if value is not None:
            raise ValueError(f"{given}={value} is given without {missing}: give both, such as rank=0 world_size=8")
    for names in (TORCHRUN, SLURM):
        if names[0] in environment and names[1] in environment:
            return Rank(*(int(environment.get(name, "0")) for name in names))
    return ALONE


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
    """Remove the folders of ranks that do not run, and keep their failures in the output's log. Raises OSError."""
    if folders:
        lines = read_failures(output)
        for folder in folders:
            lines |= read_failures(folder)
        write_failures(output, in_order(lines, rows))
    for folder in folders:
        shutil.rmtree(folder)


def in_order(lines: dict[str, str], rows: Sequence[Row]) -> list[str]:
    """Return the lines of a failure log in the order of the rows."""
    return [lines[row.id] for row in rows if row.id in lines]
