"""The layout that extraction writes: a safetensors file for each recording, in a tree like that of the audio."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2v_attn.feature_files import EXTENSION, feature_path, write_features
from w2v_attn.features.arrays import DTYPES
from w2v_attn.features.feature_errors import DamagedError
from w2v_attn.features.formats import safetensors_shards
from w2v_attn.features.formats.interface import FilePerRecordingWriter, IndexedReader
from w2v_attn.features.recording_features import RecordingFeatures

# Metadata of a file, and not of its recording: its format, and a check of its header. Another layout has its own.
OF_THE_FILE = frozenset({"format", "header_sha256"})


class MirroredReader(IndexedReader):
    """Ids are the files' paths in the folder, without their extension, sorted. The folder is walked once."""

    def __init__(self, folder: Path):
        super().__init__(dict.fromkeys(sorted(_walk(folder))))
        self._folder = folder

    def open(self, id: str) -> RecordingFeatures:
        path = feature_path(self._folder, id)
        try:
            # Its own handle for each recording: nothing is open that a fork could share.
            file = safe_open(path, "pt").__enter__()
            names, metadata = list(file.keys()), file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise DamagedError(f"{path} cannot be read as safetensors: {error}") from error
        if metadata.get("format") == safetensors_shards.FORMAT:
            raise DamagedError(f"{path} is a shard, whose {safetensors_shards.INDEX} is not beside it: convert again")
        metadata = {name: value for name, value in metadata.items() if name not in OF_THE_FILE}
        # A copy: what is mapped would be shared by all who read it, and goes with the file.
        return RecordingFeatures(id, names, metadata, lambda layer: file.get_tensor(layer).clone())


class MirroredWriter(FilePerRecordingWriter):
    """Writes each recording to its own file, whole or not at all."""

    dtypes = DTYPES

    def write(self, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        write_features(feature_path(self._folder, id), dict(features), dict(metadata))


def _walk(folder: Path) -> Iterator[str]:
    top = os.fspath(folder)
    for where, _, names in os.walk(top):
        before = "" if where == top else os.path.relpath(where, top).replace(os.sep, "/") + "/"
        yield from (before + name.removesuffix(EXTENSION) for name in names if name.endswith(EXTENSION))
