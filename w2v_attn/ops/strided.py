"""A convolution without padding over channels-last frames, as one matrix product (im2col), and its backward.

Legend: T frames of I channels; K taps, S stride; T′ = (T − K) // S + 1 windows; O channels that come out. X̂ is
[T′, K·I]: row j is the K concatenated frames that start at S·j. It is a view of X whose rows overlap.

Forward
    (1)  Y = X̂ Wᵀ + b

Backward
    (1)  dX̂ = dY W          dW = dYᵀ X̂          db = Σ dY
         dX[t] = Σ dX̂[j, k] over windows j and taps k with S·j + k = t

X is saved, not its windows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from w2v_attn.ops import gemm
from w2v_attn.ops.first_order import first_order_only, unaliased


def im2col(frames: Tensor, kernel: int, stride: int) -> Tensor:
    """Return X̂: a view [T′, kernel · C] of contiguous frames [T, C]; each row is a window, and rows overlap."""
    T, C = frames.shape
    assert frames.is_contiguous()
    return frames.as_strided(((T - kernel) // stride + 1, kernel * C), (stride * C, 1))


class StridedConvolution(torch.autograd.Function):
    """Autograd function of step (1): contiguous frames [T, I], weight [O, I, K], bias [O], stride -> [T′, O]."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(frames, weight)
        ctx.stride = stride
        first, *others = _parts(frames, weight, stride)
        y = gemm.linear(*first, bias)
        for windows, w in others:
            gemm.add_linear(y, windows, w)
        return unaliased(y)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        frames, weight = ctx.saved_tensors
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        dx = dw = None
        if need_x:
            dx = torch.zeros_like(frames)
            for dwindows, w in _parts(dx, weight, ctx.stride):
                gemm.add_linear(dwindows, dy, w.T)
        if need_w:
            parts = [gemm.linear(dy.T, windows.T) for windows, _ in _parts(frames, weight, ctx.stride)]
            dw = torch.cat(parts, 1).unflatten(1, (weight.shape[2], -1)).permute(0, 2, 1)
        return dx, dw, dy.sum(0) if need_b else None, None


def _parts(frames: Tensor, weight: Tensor, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield X̂ and W split along the taps, so that the rows of one part do not overlap, as matrix products require."""
    count = (len(frames) - weight.shape[2]) // stride + 1
    for first, w in zip(range(0, weight.shape[2], stride), weight.split(stride, 2), strict=True):
        yield im2col(frames[first:], w.shape[2], stride)[:count], w.permute(0, 2, 1).flatten(1)
