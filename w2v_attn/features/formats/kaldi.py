"""The layout `kaldi`: `LAYER.ark` and `LAYER.scp` for each layer, and metadata.jsonl with ids and metadata.

Keys are ids with white space and % encoded as %20, %25 …, because a key ends at the first space. Matrices are [frames,
channels] in float32 (FM) or float64 (DM), pooled features are vectors (FV, DV).

Source: kaldi-matrix.cc, Matrix::Write: a space after the key, "\\0B" for binary, the type, each size as its number of
bytes (4) and an int32, then the rows.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TextIO
from urllib.parse import quote

import numpy as np
from torch import Tensor

from w2v_attn.dtypes import dtype_name
from w2v_attn.features.arrays import as_tensor
from w2v_attn.features.feature_errors import DamagedError, FeatureSetError
from w2v_attn.features.formats.interface import IndexedReader, check_arrays
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.whole_files import written_whole

METADATA = "metadata.jsonl"
TYPES = {("float32", 2): b"FM ", ("float64", 2): b"DM ", ("float32", 1): b"FV ", ("float64", 1): b"DV "}
DTYPES = {kind: np.dtype("<f4" if kind[:1] == b"F" else "<f8") for kind in TYPES.values()}
BINARY = b"\0B"


class KaldiReader(IndexedReader):
    """The reader. It finds each archive next to its scp file, so the folder may be moved."""

    def __init__(self, folder: Path):
        self._folder = folder
        try:
            lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines]
            super().__init__({entry["id"]: entry for entry in entries})
            layers = dict.fromkeys(layer for entry in entries for layer in entry["layers"])
            self._offsets = {layer: dict(_offsets(folder / f"{layer}.scp")) for layer in layers}
        except (OSError, ValueError, KeyError) as error:
            raise DamagedError(f"{folder} is not what w2v-attn convert writes: {error}") from error

    def open(self, id: str) -> RecordingFeatures:
        entry = self._found[id]
        return RecordingFeatures(
            id, entry["layers"], dict(entry["metadata"]), lambda layer: self._read(layer, entry["key"])
        )

    def _read(self, layer: str, key: str) -> Tensor:
        path = self._folder / f"{layer}.ark"
        try:
            with path.open("rb") as file:
                file.seek(self._offsets[layer][key])
                return as_tensor(_read_array(file))
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise DamagedError(f"{path} cannot be read at {key}: {error}") from error


class KaldiWriter:
    """The writer. Files get their names when they are complete. The scp files name the archives by absolute paths."""

    dtypes = ("float32", "float64")

    def __init__(self, folder: Path):
        self._folder = folder
        self._open = ExitStack()
        self._archives: dict[str, tuple[BinaryIO, TextIO]] = {}

    def __enter__(self) -> "KaldiWriter":
        self._metadata = self._text(METADATA)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        check_arrays(id, features, "kaldi", self.dtypes)
        for layer, tensor in features.items():
            if tensor.dim() > 2:
                raise FeatureSetError(f"{layer} has {tensor.dim()} dimensions; Kaldi has matrices and vectors")
        key = re.sub(r"[\s%]", lambda found: quote(found[0]), id)
        for layer, tensor in features.items():
            if layer not in self._archives:
                archive = self._open.enter_context(written_whole(self._folder / f"{layer}.ark"))
                self._archives[layer] = self._open.enter_context(archive.open("xb")), self._text(f"{layer}.scp")
            archive, script = self._archives[layer]
            archive.write(key.encode() + b" ")
            script.write(f"{key} {(self._folder / f'{layer}.ark').resolve()}:{archive.tell()}\n")
            archive.write(BINARY + TYPES[dtype_name(tensor.dtype), tensor.dim()])
            archive.writelines(b"\4" + struct.pack("<i", size) for size in tensor.shape)
            archive.write(tensor.numpy().tobytes())
        entry = {"id": id, "key": key, "layers": list(features), "metadata": dict(metadata)}
        self._metadata.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _text(self, name: str) -> TextIO:
        temporary = self._open.enter_context(written_whole(self._folder / name))
        return self._open.enter_context(temporary.open("x", encoding="utf-8", newline="\n"))


def _offsets(script: Path) -> Iterator[tuple[str, int]]:
    for line in script.read_text(encoding="utf-8").splitlines():
        yield line.partition(" ")[0], int(line.rpartition(":")[2])


def _read_array(file: BinaryIO) -> np.ndarray:
    if file.read(2) != BINARY or (kind := file.read(3)) not in DTYPES:
        raise ValueError("there is no binary matrix or vector of floats")
    shape = [struct.unpack("<xi", file.read(5))[0] for _ in range(2 if kind[1:2] == b"M" else 1)]
    size = int(np.prod(shape)) * DTYPES[kind].itemsize
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"it ends after {len(content)} of {size} bytes")
    return np.frombuffer(content, DTYPES[kind]).reshape(shape)
