"""Conversion between tensors, arrays and bytes, bit for bit."""

import math
from collections.abc import Container

import numpy as np
import torch
from torch import Tensor

from w2v_attn.features.feature_errors import FeatureSetError

# Dtypes that NumPy has.
NUMPY_DTYPES = ("float64", "float32", "float16")


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite, judged by the extremes: a mask takes memory, and NaN reaches both."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in tensor.aminmax())


def check_dtype(dtype: str, layout: str, dtypes: Container[str]) -> None:
    """Raise FeatureSetError if a layout cannot store a dtype. float32 holds every value of the half precisions."""
    if dtype not in dtypes:
        raise FeatureSetError(f"layout={layout} cannot store {dtype}: output_dtype=float32 keeps every value")


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a copy of an array as a tensor, bit-identical."""
    return torch.from_numpy(np.array(array, order="C"))


def from_bytes(content: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """Return bytes as a tensor, without a copy."""
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)
