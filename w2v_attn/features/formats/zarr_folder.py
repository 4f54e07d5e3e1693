"""The layout `zarr`: a Zarr 3 folder with a group `recordings/ID` per recording, and its layers as arrays."""

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import zarr  # type: ignore[import-not-found]
from torch import Tensor

from w2v_attn.dtypes import dtype_name
from w2v_attn.features.arrays import NUMPY_DTYPES, as_tensor
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats.interface import IndexedReader, PerProcess, check_arrays
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.whole_files import temporary_name

FOLDER, IDS, RECORDINGS = "features.zarr", "ids", "recordings"


class ZarrReader(IndexedReader):
    """The reader. Ids are an attribute of the root, in the order of writing."""

    def __init__(self, folder: Path):
        self._path = folder / FOLDER
        self._root = PerProcess(partial(_open, self._path))
        try:
            super().__init__(dict.fromkeys(self._root.get().attrs[IDS]))
        except (KeyError, OSError, ValueError, TypeError) as error:
            raise DamagedError(f"{self._path} is not what w2v-attn convert writes: {error}") from error

    def open(self, id: str) -> RecordingFeatures:
        try:
            group = self._root.get()[f"{RECORDINGS}/{id}"]
            return RecordingFeatures(
                id, group.attrs["layers"], dict(group.attrs["metadata"]), partial(self._read, group)
            )
        except (KeyError, OSError, ValueError) as error:
            raise DamagedError(f"{self._path}/{RECORDINGS}/{id} cannot be read: {error}") from error

    def _read(self, group: Any, layer: str) -> Tensor:
        try:
            return as_tensor(group[layer][...])
        except (KeyError, OSError, ValueError, RuntimeError) as error:
            raise DamagedError(f"{group.store_path}/{layer} cannot be read: {error}") from error


class ZarrWriter:
    """The writer. The folder gets its name when it is complete."""

    dtypes = NUMPY_DTYPES

    def __init__(self, folder: Path):
        self._path = folder / FOLDER
        self._ids: list[str] = []

    def __enter__(self) -> "ZarrWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_name(self._path)
        self._root = zarr.open_group(self._temporary, mode="w", zarr_format=3)
        self._root.create_group(RECORDINGS)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._root.attrs[IDS] = self._ids
                if self._path.exists():  # of the same conversion, which is repeated
                    shutil.rmtree(self._path)
                os.replace(self._temporary, self._path)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        check_arrays(id, features, "zarr", self.dtypes)
        group = self._root.require_group(f"{RECORDINGS}/{id}")
        for layer, tensor in features.items():
            # One chunk, because a tensor is read as a whole.
            chunks = tuple(max(1, size) for size in tensor.shape)
            array = group.create_array(layer, shape=tensor.shape, dtype=dtype_name(tensor.dtype), chunks=chunks)
            array[...] = tensor.numpy()
        group.attrs.update({"layers": list(features), "metadata": dict(metadata)})
        self._ids.append(id)


def _open(path: Path) -> Any:
    return zarr.open_group(path, mode="r")
