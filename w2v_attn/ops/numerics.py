"""Numerical rules shared by the attention and the other operations: the softmax dtype and the dropout scale."""

import torch
from torch import Tensor


def softmax_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of scores, softmax and norms: float32 if x is half precision, else the dtype of x."""
    return torch.promote_types(x.dtype, torch.float32)


def keep_rate(dropout: float) -> float:
    """Return 1 − p, the divisor of entries that dropout keeps; 1 for p = 1, so that zeros stay zeros."""
    return 1.0 - dropout if dropout < 1 else 1.0
