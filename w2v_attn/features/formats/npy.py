"""A file of NumPy's for each tensor: `ID/LAYER.npy`, and beside them `ID/metadata.json`, written last."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from w2v_attn.features.arrays import ARRAYS, as_tensor, check_holds, dtype_name
from w2v_attn.features.errors import DamagedError
from w2v_attn.features.formats.format import ListingReader, WriterOfSingles
from w2v_attn.features.recording import Recording
from w2v_attn.whole_files import written_whole

METADATA = "metadata.json"


class NpyReader(ListingReader):
    """Ids are the folders that have a metadata.json, sorted."""

    def __init__(self, folder: Path):
        top = os.fspath(folder)
        found = (
            os.path.relpath(where, top).replace(os.sep, "/") for where, _, names in os.walk(top) if METADATA in names
        )
        super().__init__(dict.fromkeys(sorted(found)))
        self._folder = folder

    def open(self, id: str) -> Recording:
        folder = self._folder / id
        try:
            said = json.loads((folder / METADATA).read_text(encoding="utf-8"))
            return Recording(id, said["layers"], said["metadata"], lambda layer: _load(folder / f"{layer}.npy"))
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{folder / METADATA} cannot be read: {error}") from error


class NpyWriter(WriterOfSingles):
    """Writes each tensor to its own file."""

    holds = ARRAYS

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        for layer, tensor in features.items():
            check_holds(dtype_name(tensor), "npy", self.holds)
            with written_whole(self._folder / id / f"{layer}.npy") as temporary, temporary.open("xb") as file:
                np.save(file, tensor.numpy())
        with written_whole(self._folder / id / METADATA) as temporary:
            said = {"layers": list(features), "metadata": dict(metadata)}
            temporary.write_text(json.dumps(said, ensure_ascii=False, indent=1), encoding="utf-8")


def _load(path: Path) -> Tensor:
    try:
        return as_tensor(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
