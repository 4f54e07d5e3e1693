"""Rotary positions: channels turned in pairs, by an angle that grows with the frame.

Legend: x [B, T, H·D]; the channels of a head are pairs (x_d, x_{d + D/2}); cos and sin [T, D].

    (1)  y = x ∘ cos + J x ∘ sin          J (x₁, x₂) = (−x₂, x₁) turns both halves of a head's channels by a right angle

Backward: J is orthogonal and its transpose turns back, Jᵀ (z₁, z₂) = (z₂, −z₁):
    (1)  dx = dy ∘ cos + Jᵀ (dy ∘ sin)

In wav2vec2-Conformer the states are turned before the projections to queries and keys; values read them as they are.

Source: J. Su et al., "RoFormer", section 3.2, for the turning of pairs; transformers' order of the channels.
"""

from typing import Any

import torch
from torch import Tensor

from w2v_attn.ops.first_order import first_order_only


class Rotate(torch.autograd.Function):
    """x [B, T, H·D], cos and sin [T, D] -> [B, T, H·D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        heads = _heads(x, cos)
        return (heads * cos[:, None] + _turned(heads) * sin[:, None]).flatten(2)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        heads = _heads(dy, cos)
        return (heads * cos[:, None] - _turned(heads * sin[:, None])).flatten(2), None, None


def _heads(x: Tensor, cos: Tensor) -> Tensor:
    """[B, T, H·D] as [B, T, H, D]."""
    return x.unflatten(-1, (-1, cos.shape[-1]))


def _turned(heads: Tensor) -> Tensor:
    """J of each head's channels; Jᵀ is −J."""
    first, second = heads.chunk(2, -1)
    return torch.cat([-second, first], -1)
