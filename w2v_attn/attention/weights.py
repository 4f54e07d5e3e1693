"""The probabilities P as something a caller asked for: [B, H, T, T], each head's own, quadratic as they are.

Whoever asks for them may differentiate by them too, so the output is made from the very P that is handed out: gradients
flow through it, and stay on it where they are retained. Steps (2) and (3) give P, (4) and (5) the output; the equations
are those of `mathematics.py`, over whole rows of all recordings.
"""

from typing import Any

import torch
from torch import Tensor

from w2v_attn.attention import mathematics
from w2v_attn.attention.masks import AttentionMask
from w2v_attn.ops.first_order import first_order_only
from w2v_attn.ops.numerics import keep_rate, softmax_dtype


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float) -> tuple[Tensor, ...]:
    """o [B, H, T, E] and P before dropout, [B, H, T, T], in the dtype of q; differentiable.

    q, k: [B, H, T, D]. v: [B, H, T, E].
    """
    assert mask.lengths is None
    p = Scores.apply(q, k, scale, mask, *mask.added)
    return WeightedSum.apply(p, v, dropout), p


class Scores(torch.autograd.Function):
    """Steps (2) and (3): q, k -> P. added: the tensors of the mask that are added to the scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: float, mask: AttentionMask, *added: Tensor | None) -> Tensor:
        p = _probabilities(q, k, scale, mask.of(added))
        ctx.scale, ctx.mask = scale, mask.without_tensors()
        ctx.save_for_backward(q, k, p, *mask.limits, *added)
        return p

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        q, k, p, padding, allowed, *added = ctx.saved_tensors
        mask = ctx.mask.with_limits(padding, allowed).of(added)
        wide = softmax_dtype(q)
        ds = mathematics.softmax_backward(p.to(wide), dp.to(wide))  # (3)
        dq, dk = ds @ k.to(wide) * ctx.scale, ds.mT @ q.to(wide) * ctx.scale  # (2)
        gradients = mask.added_backward(ds, ctx.needs_input_grad[4:])
        dadded = (None if d is None else d.to(x.dtype) for d, x in zip(gradients, added, strict=True))
        return dq.to(q.dtype), dk.to(k.dtype), None, None, *dadded


class WeightedSum(torch.autograd.Function):
    """Steps (4) and (5): P, v -> o, in the dtype of v. dropout: the rate in force."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, v: Tensor, dropout: float) -> Tensor:
        keep = torch.rand_like(p, dtype=torch.float32) >= dropout if dropout > 0 else None
        ctx.save_for_backward(p, v, keep)
        ctx.keep_rate = keep_rate(dropout)
        return _kept(p, keep, ctx.keep_rate).to(v.dtype) @ v

    @staticmethod
    @first_order_only
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, None]:
        p, v, keep = ctx.saved_tensors
        dv = _kept(p, keep, ctx.keep_rate).to(do.dtype).mT @ do  # (5)
        return _kept((do @ v.mT).to(p.dtype), keep, ctx.keep_rate), dv, None  # (4)


def _probabilities(q: Tensor, k: Tensor, scale: float, mask: AttentionMask) -> Tensor:
    B, H, T, _ = q.shape
    wide, heads, rows = softmax_dtype(q), slice(0, H), slice(0, T)
    p = torch.empty(B, H, T, T, dtype=q.dtype, device=q.device)
    for b in range(B):
        bias, allowed = mask.tile(b, heads, rows, T, like=q)
        add = mask.adder(b, heads, rows, T)
        p[b] = mathematics.probabilities(q[b].to(wide) * scale, k[b].to(wide), bias, allowed, add)
    return p


def _kept(x: Tensor, keep: Tensor | None, keep_rate: float) -> Tensor:
    """R ∘ x / (1 − p), of step (4) and of its undoing."""
    return x if keep is None else x * keep / keep_rate
