"""Feature files: one safetensors file for each recording, written atomically."""

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

# A safetensors file begins with the length of its header: 8 bytes, little-endian. A longer header is not valid.
_LENGTH, _LONGEST = 8, 100_000_000
_CHECK = "header_sha256"

# Names of the safetensors format. A file holds the tensors of the last ones first.
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
    """The header of an undamaged feature file. shapes: layer name -> shape of its tensor."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def feature_path(output: Path, row_id: str) -> Path:
    """Return the path of a row's features. The id keeps its extension, so a.wav and a.flac get different files."""
    return output / f"{row_id}{EXTENSION}"


def write_features(path: Path, features: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata to `path` atomically. The same features and metadata give the same bytes.

    Args:
        path: The file.
        features: Layer name -> tensor on the CPU.
        metadata: Strings, for the header.

    Raises:
        OSError: the folder or the file cannot be written; nothing is left behind.
    """
    named, header = _described(features, metadata)
    write_tensors(path, header, named)


def written_size(features: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Return the size in bytes of the file that `write_features` would write."""
    named, header = _described(features, metadata)
    return file_size(header, named)


def read_header(path: Path) -> FeatureHeader | None:
    """Return the header of a feature file, or None if the file is damaged: truncated, or its header was changed.

    Only the header is read: the values are on the disk before a file gets its name, so they need no check.

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
    """Return tensors in the order of a safetensors file, and the entry of each in its header.

    The widest dtypes come first: a reader may map the file, and each tensor must be aligned to its width.
    """
    named = sorted(tensors, key=lambda item: -_ORDER[item[1].dtype])
    header, end = dict[str, Any](), 0
    for name, tensor in named:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODE_OF_DTYPE[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return named, header


def pad_header(text: str) -> bytes:
    """Return a header as bytes, padded to a multiple of 8, as the format requires."""
    content = text.encode()
    return content + b" " * (-len(content) % 8)


def file_size(header: bytes, named: Sequence[NamedTensor]) -> int:
    """Return the size in bytes of the file that `write_tensors` would write."""
    return _LENGTH + len(header) + sum(tensor.nbytes for _, tensor in named)


def write_tensors(path: Path, header: bytes, named: Sequence[NamedTensor]) -> None:
    """Write a safetensors file atomically.

    The safetensors library writes metadata in a different order each time, and holds the tensors in memory twice more.

    Args:
        path: The file.
        header: The padded header of these tensors in this order.
        named: Names and tensors, in the order of `lay_out_tensors`.

    Raises:
        OSError: the file cannot be written.
    """
    with written_whole(path) as temporary, temporary.open("xb") as file:
        file.write(len(header).to_bytes(_LENGTH, "little") + header)
        for _, tensor in named:
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _described(features: dict[str, Tensor], metadata: dict[str, str]) -> tuple[list[NamedTensor], bytes]:
    """Return the tensors in the order in which they are written, and the header of their file."""
    named, about = lay_out_tensors(sorted(features.items()))
    metadata = {"format": FORMAT, **metadata}
    check = _hash({"__metadata__": metadata, **about})
    header = {"__metadata__": {**metadata, _CHECK: check}, **about}
    return named, pad_header(json.dumps(header, separators=(",", ":")))


def _hash(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
