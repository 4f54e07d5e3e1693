"""What every layout has: a reader, and a writer."""

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from w2v_attn.features.arrays import check_holds, dtype_name
from w2v_attn.features.formats.names import check_text
from w2v_attn.features.recording import Recording


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


class ListingReader:
    """Of a reader all but `open`, where it knows every recording from the beginning.

    found: id -> what is known of a recording, in the order of ids.
    """

    def __init__(self, found: Mapping[str, Any]):
        self._found = found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __contains__(self, id: object) -> bool:
        return id in self._found


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


class WriterOfSingles:
    """Of a writer all but `write`, where each recording has files of its own: there is no beginning and no end."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def check_arrays(id: str, features: Mapping[str, Tensor], layout: str, holds: Container[str]) -> None:
    """Raises FeatureSetError where a layout of texts and arrays cannot hold a recording: its name, or a dtype."""
    check_text(id)
    for tensor in features.values():
        check_holds(dtype_name(tensor), layout, holds)
