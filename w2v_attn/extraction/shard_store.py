"""The store of the layout `shards`: few large files with an index, filled during the run.

Each group of rows of the list has its own shards, filled in the order of computation. So the content of a shard depends
on the list only, not on threads or on which process has the other groups. A killed run leaves the first shards of a
group; their recordings are valid, and the others go into the same shards as without the kill.

The index determines what is valid. A recording whose source has changed is removed from the index and goes into another
shard of its group, while its old tensors stay in the old shard: `w2v-attn convert` makes a set without them.
"""

import json
import logging
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction.feature_spec import FeatureLocation, FeatureSpec
from w2v_attn.features.conversion_folder import CONVERSION
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats.interface import check_unicode, is_unicode
from w2v_attn.features.formats.safetensors_shards import ShardsReader
from w2v_attn.features.formats.shard_index import (
    ENTRY_BYTES,
    INDEX,
    SHARD_BYTES,
    Shard,
    ShardBuffer,
    ShardIndex,
    check_shard,
    read_shard,
)
from w2v_attn.features.transform import Transformed
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import CachedResult, Outcome
from w2v_attn.runs.row_reader import source_state
from w2v_attn.whole_files import remove_leftovers

logger = logging.getLogger(__name__)

# A multiple of `prefetch.ROWS_PER_BLOCK`, where batches end. A kill costs at most a group or a shard; smaller groups
# would make shards of pooled features small.
ROWS_PER_GROUP = 1024

# A shard's number is its group's, shifted, plus its position there; a recording's is its shard's, shifted, plus its
# position.
_BITS = 16
_NAME = re.compile(r"features-(\d{6,})-(\d{4,})\.safetensors")
_FIND = (
    "SELECT s.number, s.name, s.bytes, s.header, r.tensors, r.metadata "
    "FROM recordings r JOIN shards s ON s.number = r.shard WHERE r.id = ?"
)
WithMetadata = tuple[dict[str, Tensor], dict[str, str]]  # features and metadata


class ShardStore:
    """The store of the layout `shards`; see `store.Store`.

    Several processes on one machine may write to one folder, but not several machines: SQLite's locks do not work
    between machines on network file systems. Memory holds a shard that is being filled, one that is being written, and
    two batches.
    """

    rows_per_group = ROWS_PER_GROUP
    single_machine_reason = (
        "several machines cannot write shards to one folder: give each another output, or layout=mirrored"
    )

    def __init__(
        self,
        spec: FeatureSpec,
        output: Path,
        rows: Sequence[Row],
        check_there: Callable[[], None],
        groups: Sequence[int] | None = None,
    ):
        self._spec, self._output, self._check_there = spec, output, check_there
        self._rows, self._next_group = rows, 0
        self._group_of_row: dict[str, int] = {}  # by row id, until the outcome arrives
        self._groups = range(len(rows) // ROWS_PER_GROUP + 1) if groups is None else groups
        self._index = _open_index(output)
        self._made: dict[str, WithMetadata] = {}  # by row id, until the outcome arrives
        self._checking = threading.Lock()
        self._checked: dict[int, bool] = {}  # by shard number: whether it is undamaged
        self._removed: Counter[str] = Counter()

    @staticmethod
    def prepare(output: Path, rows: Sequence[Row]) -> None:
        del rows
        _check_folder(output)
        remove_leftovers([output])
        index = _open_index(output)
        try:
            _index_unknown_shards(index, output)
        except (OSError, DamagedError) as error:
            raise _run_error(index.path, error) from error
        finally:
            index.close()

    @staticmethod
    def open_index(output: Path) -> "_Index":
        return _Index(output)

    @staticmethod
    def overhead_bytes(features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
        # The shard and the index both hold the metadata of a recording and the names of its tensors.
        names = sum(len(metadata["id"]) + len(layer) + 2 * ENTRY_BYTES for layer in features)
        return 2 * len(json.dumps(dict(metadata))) + names

    @staticmethod
    def count_files(recordings: int, size: float) -> int:
        return 1 + max(-(-recordings // ROWS_PER_GROUP), round(size / SHARD_BYTES)) if recordings else 0

    def find(self, row: Row) -> CachedResult[FeatureLocation] | None:
        if not is_unicode(row.id) or not (found := self._query(_FIND, row.id)):
            return None
        ((number, name, size, header, tensors, metadata),) = found
        path = self._output / name
        if not self._is_whole(number, path, size, header):
            return None
        shapes = {layer: place[1] for layer, place in json.loads(tensors).items()}
        found_or_reason = self._spec.check_stored(row, path, json.loads(metadata), shapes)
        if not isinstance(found_or_reason, str):
            return found_or_reason
        self._check_there()
        with self._transaction() as connection:
            connection.execute("DELETE FROM recordings WHERE id = ? AND shard = ?", (row.id, number))
        self._removed[found_or_reason] += 1
        return None

    def write(self, row: Row, recording: Recording, made: Transformed) -> FeatureLocation:
        check_unicode(row.id)
        self._made[row.id] = (made.features, self._spec.metadata(row, recording, made.underflowed))
        shapes = {name: tensor.shape for name, tensor in made.features.items()}
        return self._spec.location(self._output, shapes, made.underflowed)

    def durable(self, outcomes: Iterator[Outcome[FeatureLocation]]) -> Generator[Outcome[FeatureLocation], None, None]:
        filling, held, group = ShardBuffer(SHARD_BYTES), list[Outcome[FeatureLocation]](), 0
        left: dict[int, int] = {}
        writing: Future[list[Outcome[FeatureLocation]]] | None = None
        # In parallel with the model: results that are computed while a shard is written fill the next one.
        with ThreadPoolExecutor(1, thread_name_prefix="shard") as pool:
            for outcome in outcomes:
                here = self._pop_group(outcome.row)
                left[here] = left.get(here, len(self._rows_of(here))) - 1
                if outcome.reason is not None or outcome.cached:
                    yield outcome
                else:
                    assert not held or here == group, "outcomes of the previous group are missing"
                    group = here
                    filling.add(outcome.row.id, *self._made.pop(outcome.row.id))
                    held.append(outcome)
                if writing is not None and writing.done():
                    yield from writing.result()
                    writing = None
                if held and (filling.is_full or left[group] == 0):
                    if writing is not None:
                        yield from writing.result()
                    writing = pool.submit(self._write_shard, self._groups[group], filling, held)
                    filling, held = ShardBuffer(SHARD_BYTES), []
            if writing is not None:
                yield from writing.result()
        if held:
            logger.warning(
                "%d recordings will be computed again: their shard was not full when the run ended", len(held)
            )

    def log_recomputed(self) -> None:
        for why, count in self._removed.items():
            logger.warning("features of %d recordings were %s: computed again", count, why)

    def _pop_group(self, row: Row) -> int:
        """Return the group of a row. Outcomes arrive nearly in the order of groups, so memory holds few of them."""
        while row.id not in self._group_of_row:
            begun = self._rows_of(self._next_group)
            assert len(begun) > 0, f"{row.id} is none of the rows of this store"
            self._group_of_row |= {other.id: self._next_group for other in begun}
            self._next_group += 1
        return self._group_of_row.pop(row.id)

    def _rows_of(self, group: int) -> Sequence[Row]:
        return self._rows[group * ROWS_PER_GROUP : (group + 1) * ROWS_PER_GROUP]

    def _write_shard(
        self, group: int, filling: ShardBuffer, outcomes: Sequence[Outcome[FeatureLocation]]
    ) -> list[Outcome[FeatureLocation]]:
        """Write a shard and add it to the index; return the outcomes with its path."""
        first = group << _BITS
        after = (group + 1) << _BITS
        taken = set(self._query("SELECT number FROM shards WHERE number >= ? AND number < ?", first, after))
        number = next(number for number in range(first, after) if (number,) not in taken)
        path = self._output / f"features-{group:06d}-{number - first:04d}.safetensors"
        self._check_there()
        try:
            _add(self._index, number, filling.write(path))
        except (OSError, DamagedError) as error:
            raise _run_error(path, error) from error
        return [replace(outcome, result=replace(outcome.result, path=path)) for outcome in outcomes if outcome.result]

    def _is_whole(self, number: int, path: Path, size: int, header: int) -> bool:
        """Check once whether a shard is the one in the index; a damaged one is removed."""
        with self._checking:
            if number not in self._checked:
                self._checked[number] = _matches_index(path, size, header) or self._drop(number, path)
            return self._checked[number]

    def _drop(self, number: int, path: Path) -> bool:
        """Remove a damaged shard and return False; return True if another process has rewritten it meanwhile."""
        self._check_there()
        with self._transaction() as connection:
            entry = connection.execute("SELECT bytes, header FROM shards WHERE number = ?", (number,)).fetchone()
            if entry is None:  # the process that dropped it may be writing a new one, not yet in the index
                return False
            if _matches_index(path, *entry):
                return True
            gone = connection.execute("DELETE FROM recordings WHERE shard = ?", (number,)).rowcount
            connection.execute("DELETE FROM shards WHERE number = ?", (number,))
            path.unlink(missing_ok=True)
        self._removed["in a damaged shard"] += gone
        return False

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._index.transaction() as connection:
                yield connection
        except (OSError, DamagedError) as error:
            raise _run_error(self._index.path, error) from error

    def _query(self, query: str, *values: object) -> list[tuple]:
        try:
            return self._index.query(query, *values)
        except (OSError, DamagedError) as error:
            raise _run_error(self._index.path, error) from error


class _Index:
    def __init__(self, output: Path):
        self._shards: ShardsReader | None = None
        if (output / INDEX).exists():
            with suppress(DamagedError):  # the run rebuilds it from the shards
                self._shards = ShardsReader(output)

    def contains(self, row: Row) -> bool:
        return self._shards is not None and row.id in self._shards

    def is_valid(self, row: Row) -> bool:
        if self._shards is None or row.id not in self._shards:
            return False
        try:
            metadata = self._shards.open(row.id).metadata
        except DamagedError:
            return False
        return metadata.get("source_state") == source_state(row)


def _check_folder(output: Path) -> None:
    """Raise ValueError if a folder holds features that are not shards of an extraction."""
    if (output / CONVERSION).exists():
        raise ValueError(f"{output} holds a conversion: name another output")
    if (output / INDEX).exists():
        return
    for path in output.rglob("*.safetensors"):
        if _NAME.fullmatch(path.name) is None:
            raise ValueError(f"{output} holds features that are not shards, such as {path.name}: name another output")


def _open_index(output: Path) -> ShardIndex:
    try:
        return ShardIndex(output)
    except (OSError, DamagedError) as error:
        raise _run_error(output, error) from error


def _index_unknown_shards(index: ShardIndex, output: Path) -> None:
    """Add shards that are not in the index: the run was killed before adding them, or somebody removed the index."""
    known = {name for (name,) in index.query("SELECT name FROM shards")}
    for path in sorted(output.glob("features-*.safetensors")):
        if path.name in known or (found := _NAME.fullmatch(path.name)) is None:
            continue
        try:
            _add(index, int(found[1]) << _BITS | int(found[2]), read_shard(path))
        except DamagedError:
            path.unlink()  # its recordings are computed again


def _add(index: ShardIndex, number: int, shard: Shard) -> None:
    index.add(number, shard, range(number << _BITS, (number + 1) << _BITS))


def _matches_index(path: Path, size: int, header: int) -> bool:
    """Return whether a file is the shard in the index. Raises RunError if the file system cannot tell."""
    try:
        check_shard(path, size, header)
    except DamagedError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise RunError(str(error)) from error
        return False
    return True


def _run_error(path: Path, error: OSError | DamagedError) -> RunError:
    """Return the error that ends the run: a shard or the index concerns many recordings."""
    if isinstance(error, DamagedError):
        return RunError(f"{error}. Remove it, and the same command rebuilds it from the shards")
    return RunError(f"cannot write {path}: {error.strerror}")
