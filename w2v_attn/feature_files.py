"""Features as files: one safetensors file for each recording, whole or not there at all."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from w2v_attn.whole_files import write_whole

FORMAT = "w2v_attn.features/1"
EXTENSION = ".safetensors"

# What stands in front of a safetensors file: the length of its header in little-endian order. More is no header.
_LENGTH, _LONGEST = 8, 100_000_000
_CHECK = "header_sha256"


@dataclass(frozen=True)
class Stored:
    """What the header of a whole file says. shapes: of the tensors, by the names of their layers."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def feature_path(output: Path, row_id: str) -> Path:
    """Where the features of a row are: its id keeps its extension, so that a.wav and a.flac do not meet."""
    return output / f"{row_id}{EXTENSION}"


def write_features(path: Path, features: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the tensors and the metadata under `path`, which exists whole or not at all, whatever happens.

    features: on the CPU, each in memory of its own, for safetensors refuses to write what is shared.
    The same features and metadata give the same bytes.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind then.
    """
    write_whole(path, _serialized(features, {"format": FORMAT, **metadata}))


def written_size(features: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Bytes of the file that `write_features` would write."""
    return len(_serialized(features, {"format": FORMAT, **metadata}))


def read_header(path: Path) -> Stored | None:
    """What a feature file says of itself; None where it is damaged: cut short, or not as its header was written.

    Reads the header alone. The values are on the disk before a file has its name, so they need not be read again.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > _LONGEST:
            return None
        text = file.read(length)
        size = file.seek(0, 2)
    try:
        header = json.loads(text)
        metadata = header["__metadata__"]
        check = metadata.pop(_CHECK)
        if len(text) != length or check != _hash(header) or metadata["format"] != FORMAT:
            return None
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        end = max(about["data_offsets"][1] for about in tensors.values())
        shapes = {name: tuple(about["shape"]) for name, about in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # it may hold any JSON at all
        return None
    return Stored(metadata, shapes) if size == _LENGTH + length + end else None


def _serialized(features: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose metadata come in the order given; the library writes them in another one each time."""
    plain = save(features)
    length = int.from_bytes(plain[:_LENGTH], "little")
    header: dict[str, Any] = {"__metadata__": metadata, **json.loads(plain[_LENGTH : _LENGTH + length])}
    header["__metadata__"] = {**metadata, _CHECK: _hash(header)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors to begin at a multiple of 8
    return len(text).to_bytes(_LENGTH, "little") + text + memoryview(plain)[_LENGTH + length :]


def _hash(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
