"""The attention with its weights P as a second output, [B, H, T, T] per head, in memory quadratic in T.

Callers may differentiate with respect to P, so the output is computed from the returned P itself: gradients flow
through it, and `retain_grad` is supported. Steps (2) and (3) give P, and (4) and (5) the output; the equations are
those of `mathematics.py`, over whole rows of all recordings.
"""

from typing import Any

import torch
from torch import Tensor

from w2v_attn.attention import mathematics
from w2v_attn.attention.masks import AttentionMask
from w2v_attn.ops.first_order import first_order_only
from w2v_attn.ops.numerics import keep_rate, softmax_dtype


def attend_with_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, ...]:
    """Return o [B, H, T, E] and P before dropout, [B, H, T, T], in the dtype of q; differentiable.

    Args:
        q: Queries [B, H, T, D].
        k: Keys [B, H, T, D].
        v: Values [B, H, T, E].
        mask: Mask without lengths.
        scale: Factor on the scores.
        dropout: Rate that applies now; 0 in evaluation.
    """
    assert mask.lengths is None
    p = AttentionWeights.apply(q, k, scale, mask, *mask.bias_tensors)
    return WeightedValues.apply(p, v, dropout), p


class AttentionWeights(torch.autograd.Function):
    """Autograd function of steps (2) and (3): q, k, scale, mask, bias tensors -> P."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: float, mask: AttentionMask, *added: Tensor | None) -> Tensor:
        p = _attention_weights(q, k, scale, mask.with_bias_tensors(added))
        ctx.scale, ctx.mask = scale, mask.without_tensors()
        ctx.save_for_backward(q, k, p, *mask.boolean_masks, *added)
        return p

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor | None, ...]:
        q, k, p, padding, allowed, *added = ctx.saved_tensors
        mask = ctx.mask.with_boolean_masks(padding, allowed).with_bias_tensors(added)
        wide = softmax_dtype(q)
        ds = mathematics.softmax_backward(p.to(wide), dp.to(wide))  # (3)
        dq, dk = ds @ k.to(wide) * ctx.scale, ds.mT @ q.to(wide) * ctx.scale  # (2)
        gradients = mask.bias_backward(ds, ctx.needs_input_grad[4:])
        dbias_tensors = (None if d is None else d.to(x.dtype) for d, x in zip(gradients, added, strict=True))
        return dq.to(q.dtype), dk.to(k.dtype), None, None, *dbias_tensors


class WeightedValues(torch.autograd.Function):
    """Autograd function of steps (4) and (5): P, v, dropout rate -> o, in the dtype of v."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, v: Tensor, dropout: float) -> Tensor:
        keep = torch.rand_like(p, dtype=torch.float32) >= dropout if dropout > 0 else None
        ctx.save_for_backward(p, v, keep)
        ctx.keep_rate = keep_rate(dropout)
        return _apply_dropout(p, keep, ctx.keep_rate).to(v.dtype) @ v

    @staticmethod
    @first_order_only
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, Tensor, None]:
        p, v, keep = ctx.saved_tensors
        dv = _apply_dropout(p, keep, ctx.keep_rate).to(do.dtype).mT @ do  # (5)
        return _apply_dropout((do @ v.mT).to(p.dtype), keep, ctx.keep_rate), dv, None  # (4)


def _attention_weights(q: Tensor, k: Tensor, scale: float, mask: AttentionMask) -> Tensor:
    B, H, T, _ = q.shape
    wide, heads, rows = softmax_dtype(q), slice(0, H), slice(0, T)
    p = torch.empty(B, H, T, T, dtype=q.dtype, device=q.device)
    for b in range(B):
        bias, allowed = mask.tile(b, heads, rows, T, like=q)
        bias_fn = mask.bias_fn(b, heads, rows, T)
        p[b] = mathematics.row_weights(q[b].to(wide) * scale, k[b].to(wide), bias, allowed, bias_fn)
    return p


def _apply_dropout(x: Tensor, keep: Tensor | None, keep_rate: float) -> Tensor:
    """Return R ∘ x / (1 − p), of step (4) and of its backward."""
    return x if keep is None else x * keep / keep_rate
