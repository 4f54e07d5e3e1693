"""The autograd functions: what the derivation says is kept, and its backward as the one that training uses.

`SelfAttention` spans the whole block, steps (1) to (6), when the projections are plain linear maps. `AttentionCore`
spans steps (2) to (5), for projections that are something else (LoRA, quantised, hooked): those are called as modules,
and torch differentiates them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.attention import mathematics
from w2v_attn.attention.backends import select
from w2v_attn.attention.masks import Added, AttentionMask
from w2v_attn.ops.first_order import first_order_only, forward_mode_is_on, unaliased
from w2v_attn.ops.numerics import softmax_dtype

# Frames from which a copy of queries, keys and values pays on a CPU (3 % at 1500, 5 % at 4000, a loss at 300).
CONTIGUOUS_THRESHOLD = 512


class Options(NamedTuple):
    """What a call asks for besides its tensors. dropout is the rate in force, 0 in evaluation."""

    num_heads: int
    scale: float
    dropout: float
    backend: str
    mask: AttentionMask

    def without_tensors(self) -> "Options":
        """The same, its mask without tensors: those are saved for backward."""
        return self._replace(mask=self.mask.without_tensors())

    def with_tensors(self, padding: Tensor | None, allowed: Tensor | None, *added: Tensor | None) -> "Options":
        """The same, its mask with these tensors: its limits, and what is added to the scores."""
        return self._replace(mask=self.mask.with_limits(padding, allowed).of(added))


# How the heads were attended, for their backward: backend and memory of each recording, or of all together.
Parts = tuple[tuple[select.Backend, Any], ...]


class SelfAttention(torch.autograd.Function):
    """x and the eight parameters -> y [B, T, M]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_q: Tensor,
        b_q: Tensor | None,
        w_k: Tensor,
        b_k: Tensor | None,
        w_v: Tensor,
        b_v: Tensor | None,
        w_o: Tensor,
        b_o: Tensor | None,
        options: Options,
        *added: Tensor | None,
    ) -> Tensor:
        parameters, ctx.options = (w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o), options.without_tensors()
        needs_added = any(ctx.needs_input_grad[10:])
        y, (q, k, v, o, lse), ctx.parts = _block(x, parameters, options, needs_added=needs_added)
        # x, q, k, v and o are each O(T) and cost a product to have again; P and R are O(T²) and come back tile by tile,
        # R from the seed. The weights are the parameters themselves.
        ctx.save_for_backward(x, q, k, v, o, lse, w_q, w_k, w_v, w_o, *options.mask.limits, *added)
        return unaliased(y)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, q, k, v, o, lse, w_q, w_k, w_v, w_o, *masks = ctx.saved_tensors
        options = ctx.options.with_tensors(*masks)
        need_x, need_wq, need_bq, need_wk, need_bk, need_wv, need_bv, need_wo, need_bo, _, *needs = ctx.needs_input_grad
        dx = dw_q = db_q = dw_k = db_k = dw_v = db_v = None
        dadded = Added()
        needs_heads = need_x or need_wq or need_bq or need_wk or need_bk or need_wv or need_bv or any(needs)
        with torch.autocast(x.device.type, enabled=False):
            dw_o = mathematics.project_backward_weight(dy, mathematics.merge_heads(o)) if need_wo else None  # (6)
            db_o = mathematics.project_backward_bias(dy) if need_bo else None
            if needs_heads:
                do = mathematics.split_heads(mathematics.project_backward_input((dy, w_o)), options.num_heads)
                # (5) to (2)
                dq, dk, dv, dadded = _attend_backward(do, q, k, v, o, lse, ctx.parts, options, needs=needs)
                dq, dk, dv = (mathematics.merge_heads(d) for d in (dq, dk, dv))
                # (1)
                if need_x:
                    dx = mathematics.project_backward_input((dq, w_q), (dk, w_k), (dv, w_v))
                dw_q = mathematics.project_backward_weight(dq, x) if need_wq else None
                dw_k = mathematics.project_backward_weight(dk, x) if need_wk else None
                dw_v = mathematics.project_backward_weight(dv, x) if need_wv else None
                db_q = mathematics.project_backward_bias(dq) if need_bq else None
                db_k = mathematics.project_backward_bias(dk) if need_bk else None
                db_v = mathematics.project_backward_bias(dv) if need_bv else None
        return dx, dw_q, db_q, dw_k, db_k, dw_v, db_v, dw_o, db_o, None, *dadded


class AttentionCore(torch.autograd.Function):
    """q, k [B, H, T, D] and v [B, H, T, E] -> o [B, H, T, E]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: Options,
        *added: Tensor | None,
    ) -> Tensor:
        ctx.options, needs_added = options.without_tensors(), any(ctx.needs_input_grad[4:])
        o, lse, ctx.parts = _attend(q, k, v, options, needs_added=needs_added)
        ctx.save_for_backward(q, k, v, o, lse, *options.mask.limits, *added)
        return o

    @staticmethod
    @first_order_only
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse, *masks = ctx.saved_tensors
        options, needs = ctx.options.with_tensors(*masks), ctx.needs_input_grad[4:]
        with torch.autocast(q.device.type, enabled=False):
            dq, dk, dv, dadded = _attend_backward(do, q, k, v, o, lse, ctx.parts, options, needs=needs)
        return dq, dk, dv, None, *dadded


def self_attention(x: Tensor, parameters: tuple[Tensor | None, ...], options: Options) -> Tensor:
    """The whole block: y [B, T, M]; differentiable where gradients are on.

    parameters: w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o.
    """
    if torch.is_grad_enabled() or forward_mode_is_on():
        return SelfAttention.apply(x, *parameters, options, *options.mask.added)
    return _block(x, parameters, options, needs_added=False)[0]


def attention_core(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """Steps (2) to (5): o [B, H, T, E]; differentiable."""
    return AttentionCore.apply(q, k, v, options, *options.mask.added)


def _block(
    x: Tensor, parameters: tuple[Any, ...], options: Options, *, needs_added: bool
) -> tuple[Tensor, tuple[Any, ...], Parts]:
    """Steps (1) to (6) -> y, (q, k, v, o, log-sum-exp), and how the heads were attended."""
    w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o = parameters
    q = _heads(mathematics.project(x, w_q, b_q), options.num_heads)  # (1)
    k = _heads(mathematics.project(x, w_k, b_k), options.num_heads)
    v = _heads(mathematics.project(x, w_v, b_v), options.num_heads)
    o, lse, parts = _attend(q, k, v, options, needs_added=needs_added)  # (2) to (5)
    y = mathematics.project(mathematics.merge_heads(o), w_o, b_o)  # (6)
    return y, (q, k, v, o, lse), parts


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, H·D] as [B, H, T, D].

    On a CPU the frames of each head are laid side by side where there are many: cores read them again and again then,
    and gain more than the copy costs.
    """
    heads = mathematics.split_heads(x, num_heads)
    return heads.contiguous() if x.device.type == "cpu" and x.shape[1] >= CONTIGUOUS_THRESHOLD else heads


def _attend(
    q: Tensor, k: Tensor, v: Tensor, options: Options, *, needs_added: bool
) -> tuple[Tensor, Tensor | None, Parts]:
    """Steps (2) to (5) with the backend that serves this call -> o, log-sum-exp, and the parts of it."""
    mask = options.mask

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask
    ) -> tuple[Tensor, Tensor | None, tuple[select.Backend, Any]]:
        backend = select.select(options.backend, q, v, mask, dropout=options.dropout, needs_added=needs_added)
        o, lse, memory = backend.forward(q, k, v, mask, scale=options.scale, dropout=options.dropout)
        return o, lse, (backend, memory)

    if mask.lengths is None:
        o, lse, part = attend(q, k, v, mask)
        return o, lse, (part,)
    together = select.select_varlen(options.backend, q, v, mask, dropout=options.dropout, needs_added=needs_added)
    if together is not None:
        o, lse, memory = together.forward(q, k, v, mask, scale=options.scale, dropout=options.dropout)
        return o, lse, ((together, memory),)
    attended = (attend(q[:, :, n], k[:, :, n], v[:, :, n], mask.frames(n)) for n in mask.recordings)
    outputs, sums, parts = zip(*attended, strict=True)
    o = mathematics.split_heads(torch.cat([mathematics.merge_heads(o) for o in outputs], 1), options.num_heads)
    # Cores that need no log-sum-exp may stand beside others that do.
    lse = None if all(one is None for one in sums) else _side_by_side(sums, outputs)
    return o, lse, parts


def _side_by_side(sums: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Tensor:
    """The log-sum-exp of each recording, [1, H, ΣT]; what nobody reads where there is none."""
    dtype = softmax_dtype(outputs[0])
    pairs = zip(sums, outputs, strict=True)
    return torch.cat([o.new_empty(o.shape[:3], dtype=dtype) if lse is None else lse for lse, o in pairs], 2)


def _attend_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor | None,
    parts: Parts,
    options: Options,
    *,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Added]:
    """Undoes steps (5) to (2), from the gradient of what the heads return."""
    mask, asked = options.mask, {"scale": options.scale, "dropout": options.dropout, "needs": needs}
    if len(parts) == 1:
        ((backend, memory),) = parts
        dq, dk, dv, dadded = backend.backward(do, q, k, v, o, lse, memory, mask, **asked)
    else:
        found = []
        for n, (backend, memory) in zip(mask.recordings, parts, strict=True):
            here = (None if x is None else x[:, :, n] for x in (do, q, k, v, o, lse))
            found.append(backend.backward(*here, memory, mask.frames(n), **asked))  # type: ignore[arg-type]
        dq, dk, dv = (
            mathematics.split_heads(torch.cat([mathematics.merge_heads(d[i]) for d in found], 1), options.num_heads)
            for i in range(3)
        )
        dadded = Added.concatenate([d[3] for d in found])
    pairs = zip(dadded, mask.added, strict=True)
    return dq, dk, dv, Added(*(None if d is None else d.to(x.dtype) for d, x in pairs))
