"""What every layout has: a reader, and a writer."""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor

from w2v_attn.feature_sets.recording import Recording


class Reader(Protocol):
    """The recordings in a folder. It can be pickled, and used in a process that was forked from where it was opened."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]:
        """Ids, always in the same order."""
        ...

    def __contains__(self, id: object) -> bool: ...

    def open(self, id: str) -> Recording:
        """A recording that is there. Raises DamagedError."""
        ...


class Writer(Protocol):
    """Takes recordings one after the other. A file of its own is whole under its name, or not there.

    As a context it writes what is left when it is left without an error; with one, it drops what is not whole.

    holds: the dtypes that it can write.
    """

    holds: ClassVar[Container[str]]

    def __init__(self, folder: Path): ...

    def __enter__(self) -> "Writer": ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """features: on the CPU, contiguous, none in memory that another shares.

        Raises:
            FeatureSetError: this layout cannot hold it. OSError: it cannot be written.
        """
        ...
