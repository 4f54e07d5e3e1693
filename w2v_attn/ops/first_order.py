"""The limits of a derived backward: it is differentiated once, on one gradient at a time, and says so.

A backward that calls kernels without derivatives of their own cannot be differentiated again. torch's
`once_differentiable` raises only where the second gradient has no other way to the input: with a residual connection,
`autograd.grad` goes around it and leaves the missing term out without an error. So it is refused earlier: when a
backward runs while gradients are recorded, which is what `create_graph=True` asks for.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

functorch: Any = torch._C._functorch  # type: ignore[attr-defined]

Backward = Callable[..., Any]


def first_order_only(backward: Backward) -> Backward:
    """Let the backward of an autograd function raise where it would have to be differentiated or vectorised itself."""

    @wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"second derivatives of w2v_attn's {_name(ctx)} are not implemented: expected a backward without "
                "create_graph=True. restore_attention(model) puts stock's attention back, which has them"
            )
        if any(_is_batched(gradient) for gradient in gradients if isinstance(gradient, Tensor)):
            raise RuntimeError(
                f"the backward of w2v_attn's {_name(ctx)} takes one gradient at a time, and was given a batch of them "
                "(is_grads_batched=True, or torch.func.vmap): call autograd.grad once for each gradient"
            )
        return backward(ctx, *gradients)

    return checked


def forward_mode_is_on() -> bool:
    """Whether forward-mode derivatives are being computed, by torch.func.jvp or `torch.autograd.forward_ad`.

    Kernels without a rule for them would leave them out without an error; autograd functions raise.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return any(one.key() == functorch.TransformType.Jvp for one in functorch.get_interpreter_stack() or ())


def unaliased(y: Tensor) -> Tensor:
    """Return y as a tensor that is no view: autograd functions may not return views that callers add to in place."""
    return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y


def _name(ctx: Any) -> str:
    return type(ctx).__name__.removesuffix("Backward")


def _is_batched(x: Tensor) -> bool:
    return functorch.is_batchedtensor(x) or functorch.is_legacy_batchedtensor(x)
