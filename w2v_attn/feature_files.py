"""Features as files: one safetensors file for each recording, whole or not there at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

FORMAT = "w2v_attn.features/1"
EXTENSION = ".safetensors"
TEMPORARY = ".tmp-"


def feature_path(output: Path, row_id: str) -> Path:
    """Where the features of a row are: its id keeps its extension, so that a.wav and a.flac do not meet."""
    return output / f"{row_id}{EXTENSION}"


def write_features(path: Path, features: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the tensors and the metadata under `path`, which exists whole or not at all, whatever happens.

    features: on the CPU, each in memory of its own, for safetensors refuses to write what is shared.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind then.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(save(features, {"format": FORMAT, **metadata}))


def temporary_name(path: Path) -> Path:
    """A name beside `path`, so that the last step is a rename; its own, so that two writers do not meet."""
    return path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a name to write a file under; what is there at the end comes under `path`, after an error nothing does.

    What stood there before stands there until then.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        _publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # it may be renamed already: the interruption came just after
        raise


def _publish(temporary: Path, path: Path) -> None:
    _sync(temporary)
    os.replace(temporary, path)
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:  # not every file system lets a folder be opened
        return
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
