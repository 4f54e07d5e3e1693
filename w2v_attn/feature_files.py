"""Features as files: one safetensors file for each recording, whole or not there at all."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.whole_files import written_whole

FORMAT = "w2v_attn.features/1"
EXTENSION = ".safetensors"

# What stands in front of a safetensors file: the length of its header in little-endian order. More is no header.
_LENGTH, _LONGEST = 8, 100_000_000
_CHECK = "header_sha256"

# safetensors' names, in its order: the last ones lie first in a file.
DTYPE_OF_CODE = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}
_ORDER = {dtype: place for place, dtype in enumerate(DTYPE_OF_CODE.values())}

NamedTensor = tuple[str, Tensor]


@dataclass(frozen=True)
class FeatureHeader:
    """What the header of a whole file says. shapes: of the tensors, by the names of their layers."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def feature_path(output: Path, row_id: str) -> Path:
    """Where the features of a row are: its id keeps its extension, so that a.wav and a.flac do not meet."""
    return output / f"{row_id}{EXTENSION}"


def write_features(path: Path, features: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes the tensors and the metadata under `path`, which exists whole or not at all, whatever happens.

    features: on the CPU. The same features and metadata give the same bytes.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind then.
    """
    named, header = _described(features, metadata)
    write_tensors(path, header, named)


def written_size(features: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Bytes of the file that `write_features` would write."""
    named, header = _described(features, metadata)
    return file_size(header, named)


def read_header(path: Path) -> FeatureHeader | None:
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
    return FeatureHeader(metadata, shapes) if size == _LENGTH + length + end else None


def lay_out_tensors(tensors: Iterable[NamedTensor]) -> tuple[list[NamedTensor], dict[str, Any]]:
    """The order in which tensors lie in a safetensors file, and what its header says of each.

    The widest first: a reader may map them, and they must lie at multiples of their width.
    """
    named = sorted(tensors, key=lambda item: -_ORDER[item[1].dtype])
    header, end = dict[str, Any](), 0
    for name, tensor in named:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODE_OF_DTYPE[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return named, header


def pad_header(text: str) -> bytes:
    """A header as it is written: the format wants the tensors to begin at a multiple of 8."""
    content = text.encode()
    return content + b" " * (-len(content) % 8)


def file_size(header: bytes, named: Sequence[NamedTensor]) -> int:
    """Bytes of the file that `write_tensors` would write."""
    return _LENGTH + len(header) + sum(tensor.nbytes for _, tensor in named)


def write_tensors(path: Path, header: bytes, named: Sequence[NamedTensor]) -> None:
    """A safetensors file, whole or not at all. The library would write metadata in another order each time, and hold
    the tensors twice more meanwhile.

    header: of these tensors in this order, pad_header. Raises OSError.
    """
    with written_whole(path) as temporary, temporary.open("xb") as file:
        file.write(len(header).to_bytes(_LENGTH, "little") + header)
        for _, tensor in named:
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _described(features: dict[str, Tensor], metadata: dict[str, str]) -> tuple[list[NamedTensor], bytes]:
    """The tensors in the order in which they are written, and the header of their file."""
    named, about = lay_out_tensors(sorted(features.items()))
    metadata = {"format": FORMAT, **metadata}
    check = _hash({"__metadata__": metadata, **about})
    header = {"__metadata__": {**metadata, _CHECK: check}, **about}
    return named, pad_header(json.dumps(header, separators=(",", ":")))


def _hash(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
