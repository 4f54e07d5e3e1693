"""Rotary positions: pairs of channels are rotated by an angle that grows with the frame.

Legend: x [B, T, H·D]; the channels of a head are pairs (x_d, x_{d + D/2}); cos and sin [T, D].

    (1)  y = x ∘ cos + J x ∘ sin          J (x₁, x₂) = (−x₂, x₁) rotates the halves of a head by a right angle

Backward: J is orthogonal and its transpose rotates back, Jᵀ (z₁, z₂) = (z₂, −z₁):
    (1)  dx = dy ∘ cos + Jᵀ (dy ∘ sin)

In wav2vec2-Conformer the hidden states are rotated before the projections to queries and keys, but not for values.

Source: J. Su et al., "RoFormer", section 3.2, for the rotation of pairs; transformers' order of the channels.
"""

from typing import Any

import torch
from torch import Tensor

from w2v_attn.ops.first_order import first_order_only


class Rotate(torch.autograd.Function):
    """Autograd function of step (1): x [B, T, H·D], cos and sin [T, D] -> [B, T, H·D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        heads = _heads(x, cos)
        return (heads * cos[:, None] + _rotate_half(heads) * sin[:, None]).flatten(2)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        heads = _heads(dy, cos)
        return (heads * cos[:, None] - _rotate_half(heads * sin[:, None])).flatten(2), None, None


def _heads(x: Tensor, cos: Tensor) -> Tensor:
    """Return [B, T, H·D] as [B, T, H, D]."""
    return x.unflatten(-1, (-1, cos.shape[-1]))


def _rotate_half(heads: Tensor) -> Tensor:
    """Return J applied to each head's channels; Jᵀ is −J."""
    first, second = heads.chunk(2, -1)
    return torch.cat([-second, first], -1)
