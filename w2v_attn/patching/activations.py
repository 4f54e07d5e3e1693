"""Checks which function an activation is, by its class: sample outputs cannot distinguish similar functions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import activations

from w2v_attn.attention.plain import must_be_called

FUNCTIONS = frozenset((F.gelu, F.relu, F.silu, F.mish, F.elu, F.selu, torch.relu, torch.tanh, torch.sigmoid))
# Activations of torch that are not elementwise, or random.
NOT_ELEMENTWISE = (
    nn.GLU, nn.LogSoftmax, nn.MultiheadAttention, nn.RReLU, nn.Softmax, nn.Softmax2d, nn.Softmin,
)  # fmt: skip


def is_gelu(activation: Any) -> bool:
    """Return whether an activation is the exact GELU without hooks, so that a fused GELU can replace it."""
    if not isinstance(activation, nn.Module):
        return activation is F.gelu
    if must_be_called(activation):
        return False
    if type(activation) is nn.GELU:
        return activation.approximate == "none"
    return type(activation) is activations.GELUActivation and activation.act is F.gelu


def is_elementwise(activation: Any) -> bool:
    """Return whether an activation is a known elementwise function without parameters, for any memory layout."""
    if not isinstance(activation, nn.Module):
        return activation in FUNCTIONS
    known = type(activation).__module__ in ("torch.nn.modules.activation", activations.__name__)
    return known and not isinstance(activation, NOT_ELEMENTWISE) and not any(True for _ in activation.parameters())
