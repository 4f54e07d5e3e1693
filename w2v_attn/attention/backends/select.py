"""Select the backend that computes steps (2) to (5) of the attention.

A backend takes the queries, keys and values of all heads and returns the heads' outputs; the projections around it
belong to the layer. `tiled` is the mathematics, tile by tile, on any device and dtype, with dropout and with the
gradients of everything that is added to the scores. `sdpa` is the platform's kernel with the kernel's own backward.
`triton` is our kernel for GPUs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from w2v_attn.attention.backends import sdpa, tiled, triton, varlen
from w2v_attn.attention.masks import Added, AttentionMask


class Forward(Protocol):
    """Steps (2) to (5)."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None, Any]:
        """q, k [B, H, T, D] and v [B, H, T, E] -> o [B, H, T, E], log-sum-exp [B, H, T], what backward needs besides.

        o has the dtype of v and is 0 in rows that may attend no key. The log-sum-exp is for the backend's own
        backward; None where that computes whole rows.
        """
        ...


class Backward(Protocol):
    """Undoes steps (5) to (2)."""

    def __call__(
        self,
        do: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        o: Tensor,
        lse: Any,
        memory: Any,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float,
        needs: Sequence[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Added]:
        """-> dq, dk, dv, and the gradients of `mask.added`, of those that are needed."""
        ...


@dataclass(frozen=True)
class Backend:
    """One implementation. `unsupported_reason` says why it cannot compute a request; None where it can."""

    name: str
    unsupported_reason: Callable[..., str | None]
    forward: Forward
    backward: Backward


TILED = Backend("tiled", tiled.unsupported_reason, tiled.forward, tiled.backward)
SDPA = Backend("sdpa", sdpa.unsupported_reason, sdpa.forward, sdpa.backward)
TRITON = Backend("triton", varlen.unsupported_reason_triton, varlen.triton_forward, varlen.triton_backward)
FLASH = Backend("flash", varlen.unsupported_reason_flash, varlen.flash_forward, varlen.flash_backward)
BACKENDS_BY_NAME = {backend.name: backend for backend in (TILED, SDPA, TRITON)}
BACKENDS = ("auto", *BACKENDS_BY_NAME)


def select(backend: str, q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool) -> Backend:
    """Return the backend for this request: the named one, or with "auto" the fastest that supports it.

    Raises:
        ValueError: the named backend does not support the request.
    """
    if backend == "auto":
        if tiled.is_faster(q, mask):
            return TILED
        reason = SDPA.unsupported_reason(q, v, mask, dropout=dropout, needs_added=needs_added)
        return SDPA if reason is None else TILED
    check_backend(backend)
    named = BACKENDS_BY_NAME[backend]
    reason = named.unsupported_reason(q, v, mask, dropout=dropout, needs_added=needs_added)
    if reason is not None:
        raise ValueError(f'backend="{backend}" cannot do this: {reason}. backend="auto" takes one that can')
    return named


def select_varlen(
    backend: str, q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool
) -> Backend | None:
    """Return the backend that computes all packed recordings in one launch; None: `select` has one for each of them.

    Raises:
        ValueError: the named backend does not support the request.
    """
    check_backend(backend)
    if backend == "triton":
        return select(backend, q, v, mask, dropout=dropout, needs_added=needs_added)
    if not q.is_cuda or backend == "tiled":
        return None
    candidates = (FLASH,) if backend == "sdpa" else (FLASH, TRITON)
    if backend == "auto" and dropout == 0 and triton.is_faster_than_flash(q):
        candidates = (TRITON, FLASH)
    for candidate in candidates:
        if candidate.unsupported_reason(q, v, mask, dropout=dropout, needs_added=needs_added) is None:
            return candidate
    return None


def check_backend(backend: str) -> None:
    """Raises ValueError unless `backend` is one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {", ".join(BACKENDS)}, got "{backend}"')
