"""Features as files: one safetensors file for each recording, whole or not there at all."""

import os
import secrets
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

FORMAT = "w2v_attn.features/1"
EXTENSION = ".safetensors"


def feature_path(output: Path, row_id: str) -> Path:
    """Where the features of a row are: its id keeps its extension, so that a.wav and a.flac do not meet."""
    return output / f"{row_id}{EXTENSION}"


def write_features(path: Path, features: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the tensors and the metadata under `path`, which exists whole or not at all, whatever happens.

    features: on the CPU, each in memory of its own, for safetensors refuses to write what is shared.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(features, {"format": FORMAT, **metadata})
    # In the same folder, so that the last step is a rename; a name of its own, so that two writers do not meet.
    temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it may be renamed already: the interruption came just after
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself last. Not every file system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
