"""The limits of a derived backward: first order only, one gradient at a time. Anything else raises an error.

A backward that calls kernels without derivatives of their own cannot be differentiated again. torch's
`once_differentiable` raises only if the second gradient has no other path to the input: with a residual connection,
`autograd.grad` takes the other path and silently omits the missing term. So we raise earlier: when a backward runs
while gradients are recorded, which is what `create_graph=True` requests.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

functorch: Any = torch._C._functorch  # type: ignore[attr-defined]

Backward = Callable[..., Any]


def first_order_only(backward: Backward) -> Backward:
    """Wrap the backward of an autograd function so that it raises if it is itself differentiated or vectorised.

    Raises:
        RuntimeError: on a call of the wrapped backward with `create_graph=True` or with batched gradients.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"second derivatives of w2v_attn's {_name(ctx)} are not implemented: expected a backward without "
                "create_graph=True. restore_attention(model) brings back stock attention, which has them"
            )
        if any(_is_batched(gradient) for gradient in gradients if isinstance(gradient, Tensor)):
            raise RuntimeError(
                f"the backward of w2v_attn's {_name(ctx)} takes one gradient at a time, but got a batch of them "
                "(is_grads_batched=True, or torch.func.vmap): call autograd.grad once for each gradient"
            )
        return backward(ctx, *gradients)

    return checked


def is_forward_mode_active() -> bool:
    """Return whether forward-mode derivatives are being computed, by torch.func.jvp or `torch.autograd.forward_ad`.

    Kernels without a forward-mode rule silently omit them; autograd functions raise.
    """
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return any(one.key() == functorch.TransformType.Jvp for one in functorch.get_interpreter_stack() or ())


def unaliased(y: Tensor) -> Tensor:
    """Return y as a tensor that is not a view: callers may not modify views returned by autograd functions in place."""
    return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y


def _name(ctx: Any) -> str:
    return type(ctx).__name__.removesuffix("Backward")


def _is_batched(x: Tensor) -> bool:
    return functorch.is_batchedtensor(x) or functorch.is_legacy_batchedtensor(x)
