"""Which rows of a list are whose, where several processes go through it, each on its own."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.feeding import BLOCK

# Who a process is, and of how many: torchrun's variables; and those of a step of SLURM's (srun), not of a batch script.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Part:
    """Rows that one process does: whole blocks of the list, so that its batches are those of any other.

    number: of the part in the list, from 0.
    """

    number: int
    rows: Sequence[Row]


def parts_of(rows: Sequence[Row], together: int = 1) -> list[Part]:
    """A list in its parts. together: rows that one process must do; the parts are a multiple of them."""
    size = -(-BLOCK // together) * together
    return [Part(first // size, rows[first : first + size]) for first in range(0, len(rows), size)]


def rows_of(parts: Iterable[Part]) -> list[Row]:
    """The rows of these parts, in their order."""
    return [row for part in parts for row in part.rows]


@dataclass(frozen=True)
class Share:
    """The parts of number `rank`, from 0, of `world` shares. local_rank: the number among those on this machine.

    It has every `world`-th part of the list: that depends on the list alone, so nobody needs to speak to the others.

    Raises:
        ValueError: there is no such share.
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

    def of(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Those of this share, in the order of the list."""
        return parts[self.rank :: self.world]


ALL = Share()


def read_share(text: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """`RANK/WORLD`, from 0; None: what torchrun or a step of SLURM's says; and where neither does, all of it.

    Raises:
        ValueError: it is not of that form, or there is no such share.
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
