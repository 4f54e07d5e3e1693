"""Where the features of a run are kept: one implementation for each layout that extraction writes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction.feature_spec import FeatureLocation, FeatureSpec
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.formats.registry import get_layout
from w2v_attn.features.transform import Transformed
from w2v_attn.runs.outcomes import CachedResult, Outcome

# Name -> the class in w2v_attn.extraction. The other layouts have few files for all recordings, or many for each.
MIRRORED = "mirrored"
STORES = {MIRRORED: ("mirrored_store", "MirroredStore"), "shards": ("shard_store", "ShardStore")}


# Files do not wait for each other: most of the time a writer waits for the disk.
WRITERS = 4


class OutputIndex(Protocol):
    """What is there in an output, sampled at without changing anything."""

    def contains(self, row: Row) -> bool:
        """Whether something of a row is there; quickly."""
        ...

    def is_valid(self, row: Row) -> bool:
        """Whether it is whole, and of the source as it is; of which configuration it is, the folder says."""
        ...


class Store(Protocol):
    """The features of a run on disk: found where they are there and count, written where not.

    Of one process; others have stores of their own on the same folder, each for rows of its own.

    spec: what is made of each recording. rows: those that this store is asked about, in the order of the list.
    check_there: raises RunError where the output is not the folder that it was.
    """

    # Rows that go to one store together, from a multiple of it in the list on; 1: as anybody likes.
    rows_per_group: int
    # Why only one machine may write to a folder at a time, and the way out; None: several may.
    single_machine_reason: str | None

    def __init__(
        self,
        spec: FeatureSpec,
        output: Path,
        rows: Sequence[Row],
        check_there: Callable[[], None],
        groups: Sequence[int] | None = None,
    ):
        """groups: which `together` rows of the list those of `rows` are, counted from 0; None: the first ones."""
        ...

    @staticmethod
    def prepare(output: Path, rows: Sequence[Row]) -> None:
        """Called once for all of the list, while nobody writes; what killed processes left half written goes.

        Raises:
            ValueError: the folder holds something else. RunError, OSError: it cannot be written.
        """
        ...

    @staticmethod
    def open_index(output: Path) -> OutputIndex:
        """What is there, for an estimate."""
        ...

    @staticmethod
    def overhead_bytes(features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
        """Bytes that a recording with these features takes beside those of its tensors."""
        ...

    @staticmethod
    def count_files(recordings: int, size: float) -> int:
        """How many files so many recordings of so many bytes together are."""
        ...

    def find(self, row: Row) -> CachedResult[FeatureLocation] | None:
        """What a run before this one left of a row, if it counts; what is damaged or of another source is removed.

        Raises:
            ValueError: it is of another configuration, or of another file than this row's.
            RunError: the folder cannot be used any more.
        """
        ...

    def write(self, row: Row, recording: Recording, made: Transformed) -> FeatureLocation:
        """Takes what was made of a row, in any thread.

        Raises:
            ValueError: it concerns this row. RunError: the folder cannot be written any more.
        """
        ...

    def durable(self, outcomes: Iterator[Outcome[FeatureLocation]]) -> Iterator[Outcome[FeatureLocation]]:
        """The outcomes of the rows, each when what it speaks of is on the disk; it must be gone through."""
        ...

    def log_recomputed(self) -> None:
        """Says what was there and did not count."""
        ...


def store_of(layout: str) -> type[Store]:
    """The store of a layout. Raises FeatureSetError where there is none."""
    if layout not in STORES:
        get_layout(layout)
        raise FeatureSetError(
            f"extract writes layout={' or layout='.join(STORES)}: for {layout} give "
            f"`w2v-attn convert features=… layout={layout}` what it wrote"
        )
    module, name = STORES[layout]
    return getattr(import_module(f"w2v_attn.extraction.{module}"), name)
