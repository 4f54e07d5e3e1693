"""The store of the layout `mirrored`: a safetensors file for each recording, in a tree like that of the audio."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction.feature_spec import FeatureLocation, FeatureSpec
from w2v_attn.feature_files import feature_path, read_header, write_features, written_size
from w2v_attn.features.formats.shard_index import INDEX
from w2v_attn.features.transform import Transformed
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import CachedResult, Outcome, write_error
from w2v_attn.runs.output_folder import check_case_collisions
from w2v_attn.runs.row_reader import source_state
from w2v_attn.whole_files import remove_leftovers

logger = logging.getLogger(__name__)


class MirroredStore:
    """See `store.Store`. Every recording has its own file, so rows may be distributed freely."""

    rows_per_group = 1
    single_machine_reason = None

    def __init__(
        self,
        spec: FeatureSpec,
        output: Path,
        rows: Sequence[Row],
        check_there: Callable[[], None],
        groups: Sequence[int] | None = None,
    ):
        del rows, groups  # the path of a file determines its row
        self._spec, self._output, self._check_there = spec, output, check_there
        self._removed: list[str] = []  # the reasons; several threads append

    @staticmethod
    def prepare(output: Path, rows: Sequence[Row]) -> None:
        if (output / INDEX).exists():
            raise ValueError(f"{output} holds features in layout=shards: name another output")
        check_case_collisions(output, (row.id for row in rows))
        remove_leftovers({feature_path(output, row.id).parent for row in rows} | {output})

    @staticmethod
    def open_index(output: Path) -> "_Index":
        return _Index(output)

    @staticmethod
    def overhead_bytes(features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
        tensors = sum(tensor.nbytes for tensor in features.values())
        return written_size(dict(features), dict(metadata)) - tensors

    @staticmethod
    def count_files(recordings: int, size: float) -> int:
        return recordings

    def find(self, row: Row) -> CachedResult[FeatureLocation] | None:
        path = feature_path(self._output, row.id)
        try:
            stored = read_header(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if isinstance(failure := write_error(path, error), RunError):
                raise failure from error
            return None  # it cannot be written either, and the row's outcome will state that
        found = "damaged" if stored is None else self._spec.check_stored(row, path, stored.metadata, stored.shapes)
        if not isinstance(found, str):
            return found
        self._check_there()
        path.unlink()
        self._removed.append(found)
        return None

    def write(self, row: Row, recording: Recording, made: Transformed) -> FeatureLocation:
        path = feature_path(self._output, row.id)
        self._check_there()
        try:
            write_features(path, made.features, self._spec.metadata(row, recording, made.underflowed))
        except OSError as error:
            raise write_error(path, error) from error
        shapes = {name: tensor.shape for name, tensor in made.features.items()}
        return self._spec.location(path, shapes, made.underflowed)

    def durable(self, outcomes: Iterator[Outcome[FeatureLocation]]) -> Iterator[Outcome[FeatureLocation]]:
        return outcomes

    def log_recomputed(self) -> None:
        for why, count in Counter(self._removed).items():
            logger.warning("%d feature files were %s: computed again", count, why)


class _Index:
    def __init__(self, output: Path):
        self._output, self._fresh = output, not output.is_dir()

    def contains(self, row: Row) -> bool:
        return not self._fresh and os.path.exists(feature_path(self._output, row.id))  # False if the name is too long

    def is_valid(self, row: Row) -> bool:
        if self._fresh:
            return False
        try:
            stored = read_header(feature_path(self._output, row.id))
        except OSError:
            return False
        return stored is not None and stored.metadata.get("source_state") == source_state(row)
