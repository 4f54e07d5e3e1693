"""The layout `webdataset`: tar files with `NUMBER.LAYER.npy` per layer, and `NUMBER.json` with id and metadata.

Samples are numbered, because WebDataset ends a key at the first dot of a name: a.wav and a.flac would be one sample.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from w2v_attn.features.arrays import NUMPY_DTYPES, as_tensor
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats.interface import IndexedReader, NumberedFiles, check_arrays
from w2v_attn.features.recording_features import RecordingFeatures

FILES = "features-*.tar"
SIZE = 512 << 20
END = bytes(2 * tarfile.BLOCKSIZE)


class WebdatasetReader(IndexedReader):
    """The reader. It scans the headers once to locate the recordings."""

    def __init__(self, folder: Path):
        found: dict[str, tuple[Path, dict[str, tuple[int, int]], dict[str, str]]] = {}
        for path in sorted(folder.glob(FILES)):
            try:
                found |= dict(_index(path))
            except (tarfile.TarError, OSError, ValueError, KeyError) as error:
                raise DamagedError(f"{path} cannot be read: {error}") from error
        super().__init__(found)

    def open(self, id: str) -> RecordingFeatures:
        path, places, metadata = self._found[id]
        return RecordingFeatures(id, places, dict(metadata), lambda layer: _read(path, *places[layer]))


class WebdatasetWriter:
    """The writer: tar files of about `size` bytes."""

    dtypes = NUMPY_DTYPES

    def __init__(self, folder: Path, size: int = SIZE):
        self._files, self._size = NumberedFiles(folder, "tar", digits=6), size
        self._samples = self._bytes = 0
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> "WebdatasetWriter":
        self._files.clear()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._end_file()
        else:
            self._files.drop(*error)

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        check_arrays(id, features, "webdataset", self.dtypes)
        if self._tar is None:
            self._tar = self._files.enter(tarfile.TarFile(self._files.begin(), "w", format=tarfile.PAX_FORMAT))
        for layer, tensor in features.items():
            content = io.BytesIO()
            np.save(content, tensor.numpy())
            self._add(f"{layer}.npy", content.getvalue())
        record = {"id": id, "layers": list(features), "metadata": dict(metadata)}
        self._add("json", json.dumps(record, ensure_ascii=False).encode())
        self._samples += 1
        if self._bytes >= self._size:
            self._end_file()

    def _add(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(f"{self._samples:09d}.{name}")
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._bytes += len(content)

    def _end_file(self) -> None:
        self._files.end()
        self._tar, self._bytes = None, 0


def _index(path: Path) -> Iterator[tuple[str, tuple[Path, dict[str, tuple[int, int]], dict[str, str]]]]:
    """Yield id, and its file, layer -> (first byte, bytes), and metadata. The json of a sample follows its layers."""
    places: dict[str, tuple[int, int]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            _, _, name = member.name.partition(".")
            if name != "json":
                places[name.removesuffix(".npy")] = member.offset_data, member.size
                continue
            content = tar.extractfile(member)
            assert content is not None
            record = json.loads(content.read())
            yield record["id"], (path, {layer: places[layer] for layer in record["layers"]}, record["metadata"])
            places = {}
    # tarfile reads a truncated file as one with fewer members; only the missing zeros at the end show it.
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - len(END)))
        if places or size % tarfile.RECORDSIZE or file.read() != END:
            raise ValueError("it is cut short")


def _read(path: Path, begin: int, size: int) -> Tensor:
    try:
        with path.open("rb") as file:
            file.seek(begin)
            return as_tensor(np.load(io.BytesIO(file.read(size)), allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
