"""The attention core, steps (2) to (5), behind one interface, and the choice between its implementations.

A core takes queries, keys and values of all heads and returns what the heads return; the projections around it are the
layer's. `explicit` is the mathematics tile by tile, on any device and dtype, with dropout and with the gradients of
what is added to the scores; `fused` is the platform's kernel with the kernel's own backward; `triton` is our kernel for
GPUs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from w2v_attn.attention import explicit, fused, side_by_side, triton_core
from w2v_attn.attention.masks import Added, AttentionMask


class Forward(Protocol):
    """Steps (2) to (5)."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None, Any]:
        """q, k [B, H, T, D] and v [B, H, T, E] -> o [B, H, T, E], log-sum-exp [B, H, T], what backward needs besides.

        o has the dtype of v and is 0 in rows that may attend no key. The log-sum-exp is for the core's own backward;
        None where that computes rows whole.
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
class Core:
    """One implementation. `why_not` says what of a request it cannot do, or None when it can do it all."""

    name: str
    why_not: Callable[..., str | None]
    forward: Forward
    backward: Backward


EXPLICIT = Core("explicit", explicit.why_not, explicit.forward, explicit.backward)
FUSED = Core("fused", fused.why_not, fused.forward, fused.backward)
TRITON = Core("triton", side_by_side.why_not_triton, side_by_side.triton_forward, side_by_side.triton_backward)
FLASH = Core("flash", side_by_side.why_not_flash, side_by_side.flash_forward, side_by_side.flash_backward)
CORES = {core.name: core for core in (EXPLICIT, FUSED, TRITON)}
BACKENDS = ("auto", *CORES)


def choose(backend: str, q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool) -> Core:
    """The core for this request: the one named, or with "auto" the fastest that can do it.

    Raises:
        ValueError: the core that was named cannot do what is asked.
    """
    if backend == "auto":
        if explicit.is_faster(q, mask):
            return EXPLICIT
        refusal = FUSED.why_not(q, v, mask, dropout=dropout, needs_added=needs_added)
        return FUSED if refusal is None else EXPLICIT
    check_backend(backend)
    core = CORES[backend]
    refusal = core.why_not(q, v, mask, dropout=dropout, needs_added=needs_added)
    if refusal is not None:
        raise ValueError(f'backend="{backend}" cannot do this: {refusal}. backend="auto" takes a core that can')
    return core


def choose_together(
    backend: str, q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool
) -> Core | None:
    """The core for recordings side by side, all in one launch; None: `choose` has one for each of them.

    Raises:
        ValueError: the core that was named cannot do what is asked.
    """
    check_backend(backend)
    if backend == "triton":
        return choose(backend, q, v, mask, dropout=dropout, needs_added=needs_added)
    if not q.is_cuda or backend == "explicit":
        return None
    candidates = (FLASH,) if backend == "fused" else (FLASH, TRITON)
    if backend == "auto" and dropout == 0 and triton_core.is_faster_than_flash(q):
        candidates = (TRITON, FLASH)
    fit = (core for core in candidates if core.why_not(q, v, mask, dropout=dropout, needs_added=needs_added) is None)
    return next(fit, None)


def check_backend(backend: str) -> None:
    """Raises ValueError unless `backend` is one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f'backend must be one of {", ".join(BACKENDS)}, got "{backend}"')
