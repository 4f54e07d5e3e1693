"""Tensors as arrays and as bytes, bit for bit."""

import math
from collections.abc import Container

import numpy as np
import torch
from torch import Tensor

from w2v_attn.features.feature_errors import FeatureSetError

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

# What NumPy has.
NUMPY_DTYPES = ("float64", "float32", "float16")


def dtype_name(tensor: Tensor) -> str:
    """As on the command line: float32."""
    return str(tensor.dtype).removeprefix("torch.")


def is_finite(tensor: Tensor) -> bool:
    """Of both ends, for a mask of all takes more memory than the tensor; where one value is no number, neither is."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in tensor.aminmax())


def check_dtype(dtype: str, layout: str, dtypes: Container[str]) -> None:
    """Raises FeatureSetError where a layout does not hold a dtype. Every value of the halves is one of float32's."""
    if dtype not in dtypes:
        raise FeatureSetError(f"layout={layout} holds no {dtype}: output_dtype=float32 keeps every value")


def as_tensor(array: np.ndarray) -> Tensor:
    """The same bits in memory of their own."""
    return torch.from_numpy(np.array(array, order="C"))


def from_bytes(content: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """What the bytes are, without a copy."""
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)
