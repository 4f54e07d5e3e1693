"""The gate of WavLM's position bias: one number per head and frame, computed from the input of the attention.

Legend: X [B, T, C], whose channels of head h are x_h [D]; the weight W [8, D] and bias [8] are shared by all heads, and
c has one number per head.

Forward
    (1)  u = w₁ · x_h + b₁      z = w₂ · x_h + b₂       w₁, b₁: the sum of the first four rows, w₂, b₂: of the others
    (2)  a = σ(u)               r = σ(z)
    (3)  g = a (r c − 1) + 2

Backward
    (3)  da = dg (r c − 1)      dr = dg a c             dc = Σ dg a r over recordings and frames
    (2)  du = da a (1 − a)      dz = dr r (1 − r)
    (1)  dx_h = du w₁ + dz w₂   dw₁ = Σ du x_h          db₁ = Σ du       over recordings, frames and heads; each of the
         four rows gets the gradient of their sum (likewise w₂ and b₂)

Source: S. Chen et al., "WavLM", section III.B, equations (3) to (6); transformers computes (1) row by row.
"""

from typing import Any

import torch
from torch import Tensor

from w2v_attn.ops.first_order import first_order_only

# Rows of the weight that are summed for each of u and z.
ROWS = 4


class PositionGate(torch.autograd.Function):
    """Autograd function of steps (1) to (3): x [B, T, C], weight [8, D], bias [8], c [H] -> g [B, H, T]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, c)
        return position_gate(x, weight, bias, c)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dg: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, c = ctx.saved_tensors
        a_r, x_heads = _gates(x, weight, bias, len(c))  # two numbers per frame and head: cheap to recompute
        a, r = a_r.unbind(-1)
        dg = dg.transpose(1, 2)  # [B, T, H], the layout of x
        da, dr = dg * (r * c - 1), dg * a * c  # (3)
        dc = (dg * a * r).sum((0, 1)).to(c.dtype)
        du_dz = torch.stack([da, dr], -1) * a_r * (1 - a_r)  # (2)
        dx = torch.matmul(du_dz, _summed(weight)).flatten(2)  # (1)
        dw = du_dz.flatten(0, 2).mT @ x_heads.flatten(0, 2)
        db = du_dz.sum((0, 1, 2))
        return dx, dw.repeat_interleave(ROWS, 0), db.repeat_interleave(ROWS), dc


def position_gate(x: Tensor, weight: Tensor, bias: Tensor, c: Tensor) -> Tensor:
    """Return g [B, H, T] of steps (1) to (3). x: [B, T, C]; weight: [8, D]; bias: [8]; c: [H]. Not differentiable."""
    a_r, _ = _gates(x, weight, bias, len(c))
    return gate_output(a_r, c)


def gate_output(a_r: Tensor, c: Tensor) -> Tensor:
    """Return g [B, H, T] of step (3), from a and r stacked, [B, T, H, 2]. Differentiable."""
    a, r = a_r.unbind(-1)
    return (a * (r * c - 1) + 2).transpose(1, 2)


def _gates(x: Tensor, weight: Tensor, bias: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return a and r stacked, [B, T, H, 2], and x split into heads, [B, T, H, D]."""
    x_heads = x.unflatten(-1, (num_heads, -1))
    return torch.sigmoid(torch.matmul(x_heads, _summed(weight).mT) + _summed(bias)), x_heads


def _summed(rows: Tensor) -> Tensor:
    """Return the sums of the first and the last four rows, [8, …] -> [2, …]."""
    return rows.unflatten(0, (2, ROWS)).sum(1)
