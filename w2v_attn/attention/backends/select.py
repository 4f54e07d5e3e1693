"""Select the backend that computes steps (2) to (5) of the attention.

A backend takes the queries, keys and values of all heads and returns the heads' outputs; the projections around it
belong to the layer. `tiled` computes the equations tile by tile, on any device and dtype, with dropout and with the
gradients of everything that is added to the scores. `sdpa` calls torch's kernel and its backward. `triton` is our own
kernel for GPUs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from w2v_attn.attention.backends import sdpa, tiled, triton_launch, varlen
from w2v_attn.attention.masks import AttentionMask, BiasTensors


class Forward(Protocol):
    """The forward of a backend, steps (2) to (5)."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Return o [B, H, T, E], the log-sum-exp [B, H, T], and what else the backward needs.

        o has the dtype of v and is 0 in rows that may attend no key. Only the backward of the same backend reads the
        log-sum-exp; it is None for backends that compute whole rows.

        Args:
            q: Queries [B, H, T, D].
            k: Keys [B, H, T, D].
            v: Values [B, H, T, E].
            mask: Mask and biases of the scores.
            scale: Factor on the scores.
            dropout: Rate that applies now.
        """
        ...


class Backward(Protocol):
    """The backward of a backend, steps (5) to (2)."""

    def __call__(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Any,
        context: Any,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float,
        needs: Sequence[bool],
    ) -> tuple[Tensor, Tensor, Tensor, BiasTensors]:
        """Return dq, dk, dv, and the gradients of those `mask.bias_tensors` that `needs` marks.

        The arguments are those of the forward, what it returned, and `do`, the gradient of o.
        """
        ...


@dataclass(frozen=True)
class Backend:
    """An implementation of steps (2) to (5). `unsupported_reason`: why it does not support a request, or None."""

    name: str
    unsupported_reason: Callable[..., str | None]
    forward: Forward
    backward: Backward


TILED = Backend("tiled", tiled.unsupported_reason, tiled.forward, tiled.backward)
SDPA = Backend("sdpa", sdpa.unsupported_reason, sdpa.forward, sdpa.backward)
TRITON = Backend("triton", varlen.triton_unsupported_reason, varlen.triton_forward, varlen.triton_backward)
FLASH = Backend("flash", varlen.flash_unsupported_reason, varlen.flash_forward, varlen.flash_backward)
BACKENDS_BY_NAME = {backend.name: backend for backend in (TILED, SDPA, TRITON)}
BACKENDS = ("auto", *BACKENDS_BY_NAME)


def select_backend(
    backend: str, q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_bias_grad: bool
) -> Backend:
    """Return the backend for this request: the named one, or with "auto" the fastest that supports it.

    Raises:
        ValueError: the named backend does not support the request.
    """
    if backend == "auto":
        if tiled.is_faster(q, mask):
            return TILED
        reason = SDPA.unsupported_reason(q, v, mask, dropout=dropout, needs_bias_grad=needs_bias_grad)
        return SDPA if reason is None else TILED
    check_backend(backend)
    named = BACKENDS_BY_NAME[backend]
    reason = named.unsupported_reason(q, v, mask, dropout=dropout, needs_bias_grad=needs_bias_grad)
    if reason is not None:
        raise ValueError(
            f'backend="{backend}" does not support this call: {reason}. backend="auto" selects one that does'
        )
    return named


def select_varlen(
    backend: str, q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_bias_grad: bool
) -> Backend | None:
    """Return the backend that computes all packed recordings in one launch; or None if each needs a call of its own.

    Raises:
        ValueError: the named backend does not support the request.
    """
    check_backend(backend)
    if backend == "triton":
        return select_backend(backend, q, v, mask, dropout=dropout, needs_bias_grad=needs_bias_grad)
    if not q.is_cuda or backend == "tiled":
        return None
    candidates = (FLASH,) if backend == "sdpa" else (FLASH, TRITON)
    if backend == "auto" and dropout == 0 and triton_launch.is_faster_than_flash(q):
        candidates = (TRITON, FLASH)
    for candidate in candidates:
        if candidate.unsupported_reason(q, v, mask, dropout=dropout, needs_bias_grad=needs_bias_grad) is None:
            return candidate
    return None


def check_backend(backend: str) -> None:
    """Check the name of a backend.

    Raises:
        ValueError: the name is not one of `BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {", ".join(BACKENDS)}, got "{backend}"')
