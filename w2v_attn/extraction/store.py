"""Stores: how a run keeps its features on disk; one implementation for each layout that extraction writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction.feature_spec import FeatureLocation, FeatureSpec
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.formats.layouts import get_layout
from w2v_attn.features.transform import Transformed
from w2v_attn.runs.outcomes import CachedResult, Outcome

# Layout -> module and class in w2v_attn.extraction. The other layouts have one file for all recordings, or many for
# each, so they cannot be resumed: `convert` writes them.
MIRRORED = "mirrored"
STORES = {MIRRORED: ("mirrored_store", "MirroredStore"), "shards": ("shard_store", "ShardStore")}


# Threads that write: most of the time a writer waits for the disk.
WRITERS = 4


class OutputIndex(Protocol):
    """A read-only view of the features in an output."""

    def contains(self, row: Row) -> bool:
        """Return whether features of a row exist; fast."""
        ...

    def is_valid(self, row: Row) -> bool:
        """Return whether they are undamaged and of the current source; the folder's record names the configuration."""
        ...


class Store(Protocol):
    """The features of a run on disk: finds valid ones, and writes missing ones.

    A store belongs to one process; other processes have their own stores on the same folder, for other rows.

    Args:
        spec: What is made of each recording.
        output: The output folder.
        rows: The rows of this store, in the order of the list.
        check_there: Raises RunError if the output is no longer the same folder.
        groups: The numbers, in the list, of the groups of `rows_per_group` rows that make up `rows`; None: the first
            ones.

    Attributes:
        rows_per_group: Rows that must go to one store, starting at a multiple of this number in the list.
        single_machine_reason: Why only one machine may write to a folder at a time, and what to do; None if several
            may.
    """

    rows_per_group: int

    single_machine_reason: str | None

    def __init__(
        self,
        spec: FeatureSpec,
        output: Path,
        rows: Sequence[Row],
        check_there: Callable[[], None],
        groups: Sequence[int] | None = None,
    ):
        """See the class."""
        ...

    @staticmethod
    def prepare(output: Path, rows: Sequence[Row]) -> None:
        """Prepare the folder, once for the whole list, while nobody writes; removes partial files of killed processes.

        Raises:
            ValueError: the folder holds something else.
            RunError, OSError: it cannot be written.
        """
        ...

    @staticmethod
    def open_index(output: Path) -> OutputIndex:
        """Return a view of the existing features, for an estimate."""
        ...

    @staticmethod
    def overhead_bytes(features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
        """Return the bytes that a recording with these features takes besides its tensors."""
        ...

    @staticmethod
    def count_files(recordings: int, size: float) -> int:
        """Return how many files this many recordings with `size` bytes in total take."""
        ...

    def find(self, row: Row) -> CachedResult[FeatureLocation] | None:
        """Return the valid result of an earlier run; remove a result that is damaged or of another source.

        Raises:
            ValueError: it belongs to another configuration, or to another file with the same id.
            RunError: the folder can no longer be used.
        """
        ...

    def write(self, row: Row, recording: Recording, made: Transformed) -> FeatureLocation:
        """Store what was made of a row, in any thread.

        Raises:
            ValueError: the error concerns this row.
            RunError: the folder can no longer be written.
        """
        ...

    def durable(self, outcomes: Iterator[Outcome[FeatureLocation]]) -> Iterator[Outcome[FeatureLocation]]:
        """Yield the outcomes of the rows, each when its result is on the disk; must be iterated to the end."""
        ...

    def log_recomputed(self) -> None:
        """Log which existing results were not valid."""
        ...


def store_of(layout: str) -> type[Store]:
    """Return the store of a layout. Raises FeatureSetError if extraction does not write it."""
    if layout not in STORES:
        get_layout(layout)
        raise FeatureSetError(
            f"extract writes layout={' or layout='.join(STORES)}: for {layout} give "
            f"`w2v-attn convert features=… layout={layout}` what it wrote"
        )
    module, name = STORES[layout]
    return getattr(import_module(f"w2v_attn.extraction.{module}"), name)
