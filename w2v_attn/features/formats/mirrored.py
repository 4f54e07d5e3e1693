"""The layout `mirrored`, which extraction writes: one safetensors file per recording, in a tree like the audio's."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2v_attn.dtypes import DTYPES
from w2v_attn.feature_files import EXTENSION, feature_path, write_features
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats import safetensors_shards
from w2v_attn.features.formats.interface import FilePerRecordingWriter, IndexedReader
from w2v_attn.features.recording_features import RecordingFeatures

# Metadata of the file, not of the recording: its format, and a checksum of its header.
OF_THE_FILE = frozenset({"format", "header_sha256"})


class MirroredReader(IndexedReader):
    """The reader. Ids are the sorted paths of the files, without extension. The folder is walked once."""

    def __init__(self, folder: Path):
        super().__init__(dict.fromkeys(sorted(_walk(folder))))
        self._folder = folder

    def open(self, id: str) -> RecordingFeatures:
        path = feature_path(self._folder, id)
        try:
            # A separate handle for each recording: a fork must not share an open file.
            file = safe_open(path, "pt").__enter__()
            names, metadata = list(file.keys()), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"{path} cannot be read as safetensors: {error}") from error
        if metadata.get("format") == safetensors_shards.FORMAT:
            raise DamagedError(f"{path} is a shard without its {safetensors_shards.INDEX}: convert again")
        metadata = {name: value for name, value in metadata.items() if name not in OF_THE_FILE}
        # A copy: mapped memory would be shared by all readers, and become invalid with the file.
        return RecordingFeatures(id, names, metadata, lambda layer: file.get_tensor(layer).clone())


class MirroredWriter(FilePerRecordingWriter):
    """The writer: each recording in its own file, written atomically."""

    dtypes = DTYPES

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        write_features(feature_path(self._folder, id), dict(features), dict(metadata))


def _walk(folder: Path) -> Iterator[str]:
    top = os.fspath(folder)
    for where, _, names in os.walk(top):
        before = "" if where == top else os.path.relpath(where, top).replace(os.sep, "/") + "/"
        yield from (before + name.removesuffix(EXTENSION) for name in names if name.endswith(EXTENSION))
