"""The safetensors of a Hugging Face folder, opened without reading them: each tensor is read when it is needed.

Tensors whose dtype is kept are mapped into memory: they take no memory that the system cannot reclaim, processes share
them, and a model that does not fit into memory is still usable. Tensors whose dtype changes are read one by one.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from w2v_attn.checkpoints.unusable_files import WEIGHT_FILES

SINGLE, INDEX, *_ = WEIGHT_FILES
# Names of dtypes in safetensors.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def safetensors_files(folder: Path) -> list[Path]:
    """Return the safetensors files with the weights of a folder; none if they are in another format."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return []


def stored_dtype(files: Iterable[Path]) -> torch.dtype:
    """Return the dtype of most of the weights in safetensors files."""
    sizes = dict.fromkeys(_DTYPES.values(), 0)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                part = file.get_slice(name)
                if part.get_dtype() in _DTYPES:
                    sizes[_DTYPES[part.get_dtype()]] += torch.Size(part.get_shape()).numel()
    return max(sizes, key=sizes.__getitem__)


def open_tensors(files: Iterable[Path], dtype: torch.dtype) -> dict[str, Any]:
    """Return the tensors of safetensors files by name, as slices that transformers reads one by one.

    Args:
        files: The files.
        dtype: The dtype that the weights will have.
    """
    tensors: dict[str, Any] = {}
    for path in files:
        file = safe_open(path, framework="pt")
        found = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        # Windows reserves memory for the whole of a mapped file. A file that is mapped stays in memory until the last
        # of its tensors is gone, so a conversion of mapped tensors would hold two copies.
        if sys.platform == "win32" or any(_DTYPES.get(name, dtype) != dtype for name in found):
            file = safe_open(path, framework="pt", backend="pread")
        tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return tensors
