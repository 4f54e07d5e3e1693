"""Which rows of a list are whose, where several processes go through it, each on its own."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.feeding import blocks

# Who a process is, and of how many: torchrun's variables; and those of a step of SLURM's (srun), not of a batch script.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Share:
    """The part of number `rank`, from 0, of `world` parts. local_rank: the number among those on this machine.

    A part has every `world`-th block of the list: it depends on the list alone, so nobody needs to speak to the others,
    and batches are those of a process that has the whole list.

    Raises:
        ValueError: there is no such part.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"a share is one of 0/{self.world} to {self.world - 1}/{self.world}, got {self}")

    def __str__(self) -> str:
        return f"{self.rank}/{self.world}"

    @property
    def is_all(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    def of(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows of this part, in the order of the list."""
        if self.is_all:
            return rows
        return [row for number, block in enumerate(blocks(rows)) if number % self.world == self.rank for row in block]


ALL = Share()


def read_share(text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """`RANK/WORLD`, from 0; None: what torchrun or a step of SLURM's says; and where neither does, all of it.

    Raises:
        ValueError: it is not of that form, or there is no such part.
    """
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None:
            raise ValueError(f"share must be RANK/WORLD such as 0/8, counted from 0, got {text}")
        return Share(int(found[1]), int(found[2]))
    for names in (TORCHRUN, SLURM):
        if names[0] in environment and names[1] in environment:
            rank, world, local = (int(environment.get(name, "0")) for name in names)
            return Share(rank, world, local)
    return ALL
