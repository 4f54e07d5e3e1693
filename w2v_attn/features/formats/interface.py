"""The interface of layouts, a reader and a writer, and what implementations share."""

import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor

from w2v_attn.dtypes import dtype_name
from w2v_attn.features.arrays import check_dtype
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.whole_files import written_whole

Opened = TypeVar("Opened")


class FeatureReader(Protocol):
    """The recordings in a folder. It can be pickled, and used in forked processes."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]:
        """Yield ids, always in the same order."""
        ...

    def __contains__(self, id: object) -> bool: ...

    def open(self, id: str) -> RecordingFeatures:
        """Open an existing recording. Raises DamagedError."""
        ...


class IndexedReader:
    """Base class of readers that know all recordings from the start; they implement `open`.

    Args:
        found: Id -> what is known of a recording, in the order of ids.
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
    """A writer of recordings, used as a context manager. Its files are complete under their names, or do not exist.

    On exit it writes what is pending; after an error it drops incomplete files.

    Attributes:
        dtypes: Dtypes that the layout can store.
    """

    dtypes: ClassVar[Container[str]]

    def __init__(self, folder: Path): ...

    def __enter__(self) -> "FeatureWriter": ...

    def __exit__(self, *error: object) -> None: ...

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write a recording.

        Args:
            id: Its id.
            features: Layer -> contiguous tensor on the CPU that shares memory with no other.
            metadata: Strings.

        Raises:
            FeatureSetError: the layout cannot store it.
            OSError: it cannot be written.
        """
        ...


class FilePerRecordingWriter:
    """Base class of writers with separate files for each recording: entering and leaving do nothing."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def check_arrays(id: str, features: Mapping[str, Tensor], layout: str, dtypes: Container[str]) -> None:
    """Raise FeatureSetError if a layout of text and arrays cannot store a recording, because of its id or a dtype."""
    check_unicode(id)
    for tensor in features.values():
        check_dtype(dtype_name(tensor.dtype), layout, dtypes)


def is_unicode(id: str) -> bool:
    """Return whether an id is Unicode: file names may be any bytes, which most layouts cannot store."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_unicode(id: str) -> None:
    """Raise FeatureSetError if an id is not Unicode."""
    if not is_unicode(id):
        raise FeatureSetError("its name is not Unicode, which this layout needs: rename it, or use layout=mirrored")


class NumberedFiles:
    """Files `features-NUMBER.EXTENSION` in a folder, written one after the other, each atomically.

    Args:
        folder: The folder.
        extension: The extension.
        digits: Digits of the number.
    """

    def __init__(self, folder: Path, extension: str, digits: int):
        self._folder, self._extension, self._digits = folder, extension, digits
        self._count = 0
        self._open = ExitStack()

    def clear(self) -> None:
        """Remove existing files: they belong to the same conversion, which is repeated."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob(f"features-*.{self._extension}"):
            if re.fullmatch(rf"features-\d{{{self._digits}}}\.{self._extension}", old.name):
                old.unlink()

    def begin(self) -> Path:
        """Return a temporary path for the next file."""
        path = self._folder / f"features-{self._count:0{self._digits}d}.{self._extension}"
        return self._open.enter_context(written_whole(path))

    def enter(self, opened: AbstractContextManager[Opened]) -> Opened:
        """Enter the writer of the current file, which is closed before the file gets its name."""
        return self._open.enter_context(opened)

    def end(self) -> None:
        """Give the current file its name."""
        self._open.close()
        self._count += 1

    def drop(self, *error: object) -> None:
        """Remove the current file after an error."""
        self._open.__exit__(*error)  # type: ignore[arg-type]


class PerProcess(Generic[Opened]):
    """A resource that is opened on first use in each process, whether forked or spawned.

    Args:
        opener: Opens it; must be picklable if this is pickled.
    """

    def __init__(self, opener: Callable[[], Opened]):
        self._opener = opener
        # The resource of a parent process is kept but not used: closing it would disturb the parent.
        self._opened: dict[int, Opened] = {}

    def get(self) -> Opened:
        """Return the resource of this process."""
        process = os.getpid()
        if process not in self._opened:
            self._opened[process] = self._opener()
        return self._opened[process]

    def __getstate__(self) -> dict[str, object]:
        return {"_opener": self._opener, "_opened": {}}
