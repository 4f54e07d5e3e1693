"""What an activation is, decided by its class: outputs for some inputs would not tell it from its relatives."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import activations

from w2v_attn.attention.plain import is_observed

FUNCTIONS = frozenset((F.gelu, F.relu, F.silu, F.mish, F.elu, F.selu, torch.relu, torch.tanh, torch.sigmoid))
# Activations of torch that see more than one number at a time, or draw random ones.
NOT_ELEMENTWISE = (
    nn.GLU, nn.LogSoftmax, nn.MultiheadAttention, nn.RReLU, nn.Softmax, nn.Softmax2d, nn.Softmin,
)  # fmt: skip


def is_gelu(activation: Any) -> bool:
    """Whether an activation is the exact GELU as it is now, and need not be called."""
    if not isinstance(activation, nn.Module):
        return activation is F.gelu
    if is_observed(activation):
        return False
    if type(activation) is nn.GELU:
        return activation.approximate == "none"
    return type(activation) is activations.GELUActivation and activation.act is F.gelu


def is_elementwise(activation: Any) -> bool:
    """Whether an activation is a known function of single numbers, without parameters: the layout does not matter."""
    if not isinstance(activation, nn.Module):
        return activation in FUNCTIONS
    known = type(activation).__module__ in ("torch.nn.modules.activation", activations.__name__)
    return known and not isinstance(activation, NOT_ELEMENTWISE) and not any(True for _ in activation.parameters())
