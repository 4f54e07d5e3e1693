"""What every layout has: a reader, and a writer."""

import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor

from w2v_attn.features.arrays import check_dtype, dtype_name
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.whole_files import written_whole

Opened = TypeVar("Opened")


class FeatureReader(Protocol):
    """The recordings in a folder. It can be pickled, and used in a process that was forked from where it was opened."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]:
        """Ids, always in the same order."""
        ...

    def __contains__(self, id: object) -> bool: ...

    def open(self, id: str) -> RecordingFeatures:
        """A recording that is there. Raises DamagedError."""
        ...


class IndexedReader:
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


class FeatureWriter(Protocol):
    """Takes recordings one after the other. A file of its own is whole under its name, or not there.

    As a context it writes what is left when it is left without an error; with one, it drops what is not whole.

    holds: the dtypes that it can write.
    """

    dtypes: ClassVar[Container[str]]

    def __init__(self, folder: Path): ...

    def __enter__(self) -> "FeatureWriter": ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """features: on the CPU, contiguous, none in memory that another shares.

        Raises:
            FeatureSetError: this layout cannot hold it. OSError: it cannot be written.
        """
        ...


class FilePerRecordingWriter:
    """Of a writer all but `write`, where each recording has files of its own: there is no beginning and no end."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def check_arrays(id: str, features: Mapping[str, Tensor], layout: str, dtypes: Container[str]) -> None:
    """Raises FeatureSetError where a layout of texts and arrays cannot hold a recording: its name, or a dtype."""
    check_unicode(id)
    for tensor in features.values():
        check_dtype(dtype_name(tensor), layout, dtypes)


def is_unicode(id: str) -> bool:
    """Whether an id is Unicode."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unicode(id: str) -> None:
    """Raises FeatureSetError where an id is not Unicode."""
    if not is_unicode(id):
        raise FeatureSetError("its name is not Unicode, which this layout needs: rename it, or take layout=mirrored")


class NumberedFiles:
    """`features-NUMBER.EXTENSION` in a folder, one after the other, each whole under its name or not there.

    digits: of the number.
    """

    def __init__(self, folder: Path, extension: str, digits: int):
        self._folder, self._extension, self._digits = folder, extension, digits
        self._count = 0
        self._open = ExitStack()

    def clear(self) -> None:
        """Removes those that are there: they are of the same request, which is made again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob(f"features-*.{self._extension}"):
            if re.fullmatch(rf"features-\d{{{self._digits}}}\.{self._extension}", old.name):
                old.unlink()

    def begin(self) -> Path:
        """The name to write the next one under, until it ends."""
        path = self._folder / f"features-{self._count:0{self._digits}d}.{self._extension}"
        return self._open.enter_context(written_whole(path))

    def enter(self, opened: AbstractContextManager[Opened]) -> Opened:
        """What writes to the file that was begun: it is closed before the file gets its name."""
        return self._open.enter_context(opened)

    def end(self) -> None:
        """The file that was begun comes under its name."""
        self._open.close()
        self._count += 1

    def drop(self, *error: object) -> None:
        """The file that was begun goes, after an error."""
        self._open.__exit__(*error)  # type: ignore[arg-type]


class PerProcess(Generic[Opened]):
    """Opens at the first use in each process: a worker that was forked gets its own, one that was spawned too.

    opener: can be pickled where this is to be.
    """

    def __init__(self, opener: Callable[[], Opened]):
        self._opener = opener
        # That of a parent is kept and not used: to close it would disturb the parent's.
        self._opened: dict[int, Opened] = {}

    def get(self) -> Opened:
        """That of this process."""
        process = os.getpid()
        if process not in self._opened:
            self._opened[process] = self._opener()
        return self._opened[process]

    def __getstate__(self) -> dict[str, object]:
        return {"_opener": self._opener, "_opened": {}}
