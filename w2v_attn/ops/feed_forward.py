"""The feed-forward of a block, with a derived backward that saves one tensor of the inner width instead of two.

Legend: N frames, C channels, F inner channels, p rate of dropout; R is 1 where an entry is kept and 0 where dropped.

Forward
    (1)  U = X W₁ᵀ + b₁
    (2)  A = R ∘ gelu(U) / (1 − p)
    (3)  Y = A W₂ᵀ + b₂

Backward, undoing the steps by number
    (3)  dA = dY W₂            dW₂ = dYᵀ A           db₂ = Σ dY
    (2)  dU = R ∘ dA / (1 − p) ∘ gelu′(U)            gelu′(u) = Φ(u) + u φ(u)
    (1)  dX = dU W₁            dW₁ = dUᵀ X           db₁ = Σ dU

Saved are X, U, and R if there is dropout; the backward recomputes A from U.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from w2v_attn.ops import gemm
from w2v_attn.ops.first_order import first_order_only, unaliased
from w2v_attn.ops.numerics import keep_rate


def feed_forward(x: Tensor, inner: nn.Linear, outer: nn.Linear, *, dropout: float) -> Tensor:
    """Return the output of the feed-forward, steps (1) to (3); differentiable.

    Args:
        x: Hidden states [..., C].
        inner: Linear map from C to F channels.
        outer: Linear map from F to C channels.
        dropout: Rate p that applies now; 0 in evaluation.
    """
    tensors = (x, inner.weight, inner.bias, outer.weight, outer.bias)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # autocast leaves float64 alone
        dtype = torch.get_autocast_dtype(device)
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    with torch.autocast(device, enabled=False):
        return FeedForward.apply(*tensors, dropout)


class FeedForward(torch.autograd.Function):
    """Autograd function of steps (1) to (3): x, W₁, b₁, W₂, b₂, dropout -> y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_1: Tensor, b_1: Tensor | None, w_2: Tensor, b_2: Tensor | None, dropout: float
    ) -> Tensor:
        needs_backward = any(ctx.needs_input_grad)
        if not needs_backward and dropout == 0:
            return unaliased(gemm.linear(gemm.linear(x, w_1, b_1, gelu=True), w_2, b_2))
        u = gemm.linear(x, w_1, b_1)  # (1)
        a, keep = _activate(u, None, dropout)  # (2)
        ctx.dropout = dropout
        ctx.save_for_backward(x, u, keep, w_1, w_2)
        return unaliased(gemm.linear(a, w_2, b_2))  # (3)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, u, keep, w_1, w_2 = ctx.saved_tensors
        need_x, need_w1, need_b1, need_w2, need_b2, _ = ctx.needs_input_grad
        shape, dx, dw_1, db_1, dw_2, db_2 = x.shape, None, None, None, None, None
        x, u, dy = (tensor.flatten(0, -2) for tensor in (x, u, dy))
        keep = None if keep is None else keep.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            if need_w2:  # (3)
                dw_2 = gemm.linear(dy.T, _activate(u, keep, ctx.dropout)[0].T)
            db_2 = dy.sum(0) if need_b2 else None
            if need_x or need_w1 or need_b1:
                da = gemm.linear(dy, w_2.T)
                if keep is not None:  # (2)
                    da.mul_(keep).div_(keep_rate(ctx.dropout))
                du = torch.ops.aten.gelu_backward(da, u)
                dx = gemm.linear(du, w_1.T).view(shape) if need_x else None  # (1)
                dw_1 = gemm.linear(du.T, x.T) if need_w1 else None
                db_1 = du.sum(0) if need_b1 else None
        return dx, dw_1, db_1, dw_2, db_2, None


def _activate(u: Tensor, keep: Tensor | None, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Return A of step (2) and its mask R, bool; R is drawn if `keep` is None and there is dropout."""
    a = F.gelu(u)
    if dropout == 0:
        return a, None
    if keep is None:
        keep = torch.rand_like(u, dtype=torch.float32) >= dropout
    return a.mul_(keep).div_(keep_rate(dropout)), keep
