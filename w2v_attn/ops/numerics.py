"""The numerical rules that the mathematics and the operations below it share."""

import torch
from torch import Tensor


def softmax_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of scores, their softmax and of norms: float32 for half precisions, x's own else."""
    return torch.promote_types(x.dtype, torch.float32)


def keep_rate(dropout: float) -> float:
    """Return 1 − p, by which what dropout keeps is divided; 1 where nothing is kept, so that zeros stay zeros."""
    return 1.0 - dropout if dropout < 1 else 1.0
