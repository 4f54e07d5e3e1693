"""The layout `npy`: a NumPy file for each tensor, `ID/LAYER.npy`, and `ID/metadata.json`, which is written last."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from w2v_attn.dtypes import dtype_name
from w2v_attn.features.arrays import NUMPY_DTYPES, as_tensor, check_dtype
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats.interface import FilePerRecordingWriter, IndexedReader
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.whole_files import written_whole

METADATA = "metadata.json"


class NpyReader(IndexedReader):
    """The reader. Ids are the sorted folders that have a metadata.json."""

    def __init__(self, folder: Path):
        top = os.fspath(folder)
        found = (
            os.path.relpath(where, top).replace(os.sep, "/") for where, _, names in os.walk(top) if METADATA in names
        )
        super().__init__(dict.fromkeys(sorted(found)))
        self._folder = folder

    def open(self, id: str) -> RecordingFeatures:
        folder = self._folder / id
        try:
            record = json.loads((folder / METADATA).read_text(encoding="utf-8"))
            return RecordingFeatures(
                id, record["layers"], record["metadata"], lambda layer: _load(folder / f"{layer}.npy")
            )
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{folder / METADATA} cannot be read: {error}") from error


class NpyWriter(FilePerRecordingWriter):
    """The writer: each tensor in its own file."""

    dtypes = NUMPY_DTYPES

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        for layer, tensor in features.items():
            check_dtype(dtype_name(tensor.dtype), "npy", self.dtypes)
            with written_whole(self._folder / id / f"{layer}.npy") as temporary, temporary.open("xb") as file:
                np.save(file, tensor.numpy())
        with written_whole(self._folder / id / METADATA) as temporary:
            record = {"layers": list(features), "metadata": dict(metadata)}
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")


def _load(path: Path) -> Tensor:
    try:
        return as_tensor(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
