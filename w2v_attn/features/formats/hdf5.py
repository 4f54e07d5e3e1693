"""The layout `hdf5`: one file with a group `recordings/ID` per recording; layers are datasets, metadata attributes."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-not-found]
from torch import Tensor

from w2v_attn.features.arrays import NUMPY_DTYPES, as_tensor
from w2v_attn.features.feature_errors import DamagedError, FeatureSetError
from w2v_attn.features.formats.interface import IndexedReader, PerProcess, check_arrays
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.whole_files import written_whole

FILE, IDS, RECORDINGS = "features.h5", "ids", "recordings"


class Hdf5Reader(IndexedReader):
    """The reader. The HDF5 library cannot be used across a fork, so each process opens the file itself."""

    def __init__(self, folder: Path):
        self._path = folder / FILE
        self._file: PerProcess[Any] = PerProcess(partial(_open, self._path))
        try:
            super().__init__(dict.fromkeys(self._file.get()[IDS].asstr()[()].tolist()))
        except (KeyError, OSError, AttributeError) as error:
            raise DamagedError(f"{self._path} is not what w2v-attn convert writes: {error}") from error

    def open(self, id: str) -> RecordingFeatures:
        try:
            group: Any = self._file.get()[f"{RECORDINGS}/{id}"]
            # A group may hold the groups of other recordings, whose ids begin with its id; they are not datasets.
            layers = [name for name, item in group.items() if isinstance(item, h5py.Dataset)]
            return RecordingFeatures(id, layers, dict(group.attrs), partial(self._read, group))
        except (KeyError, OSError, RuntimeError) as error:
            raise DamagedError(f"{self._path} cannot be read: {error}") from error

    def _read(self, group: Any, layer: str) -> Tensor:
        try:
            return as_tensor(group[layer][()])
        except (KeyError, OSError, RuntimeError) as error:
            raise DamagedError(f"{self._path} cannot be read: {error}") from error


class Hdf5Writer:
    """The writer. The file gets its name when it is complete."""

    dtypes = NUMPY_DTYPES

    def __init__(self, folder: Path):
        self._path = folder / FILE
        self._open = ExitStack()
        self._ids: list[str] = []

    def __enter__(self) -> "Hdf5Writer":
        temporary = self._open.enter_context(written_whole(self._path))
        # The first version whose attributes may exceed 64 kB, as the spans of a recording do.
        self._file = self._open.enter_context(h5py.File(temporary, "x", libver=("v110", "v110")))
        self._file.create_group(RECORDINGS)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._open.__exit__(*error)  # type: ignore[arg-type]
            return
        with self._open:  # closes the file, then renames it
            self._file.create_dataset(IDS, data=self._ids, dtype=h5py.string_dtype())

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        check_arrays(id, features, "hdf5", self.dtypes)
        try:
            group = self._file.require_group(f"{RECORDINGS}/{id}")
            for layer, tensor in features.items():
                group.create_dataset(layer, data=tensor.numpy())
        except (TypeError, ValueError) as error:  # another recording has a layer of this name
            raise FeatureSetError(f"its name conflicts with another recording's: {error}") from error
        group.attrs.update(metadata)
        self._ids.append(id)


def _open(path: Path) -> h5py.File:
    return h5py.File(path, "r")
