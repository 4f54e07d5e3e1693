"""The autograd functions of the attention, with the derived backward and only what the derivation needs saved.

`SelfAttention` spans the whole block, steps (1) to (6), when the projections are plain linear maps. `AttentionCore`
spans steps (2) to (5), for projections that are anything else (LoRA, quantised, hooked): these are called as modules,
and torch differentiates them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.attention import mathematics
from w2v_attn.attention.backends import select
from w2v_attn.attention.masks import AttentionMask, BiasTensors
from w2v_attn.ops.first_order import first_order_only, is_forward_mode_active, unaliased
from w2v_attn.ops.numerics import softmax_dtype

# Frames from which a contiguous copy of queries, keys and values is faster on a CPU (3 % at 1500, 5 % at 4000; slower
# at 300).
CONTIGUOUS_THRESHOLD = 512


class AttentionOptions(NamedTuple):
    """The arguments of a call besides its tensors. dropout: the rate that applies now, 0 in evaluation."""

    num_heads: int
    scale: float
    dropout: float
    backend: str
    mask: AttentionMask

    def without_tensors(self) -> "AttentionOptions":
        """Return a copy whose mask has no tensors: autograd saves those for backward."""
        return self._replace(mask=self.mask.without_tensors())

    def with_tensors(self, padding: Tensor | None, allowed: Tensor | None, *added: Tensor | None) -> "AttentionOptions":
        """Return a copy whose mask has these boolean masks and bias tensors."""
        return self._replace(mask=self.mask.with_boolean_masks(padding, allowed).with_bias_tensors(added))


# The backend calls of a forward, for its backward: backend and context of each recording, or one call for all of them.
BackendCalls = tuple[tuple[select.Backend, Any], ...]


class SelfAttention(torch.autograd.Function):
    """Autograd function of steps (1) to (6): x, the eight parameters, options, bias tensors -> y [B, T, M]."""

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
        options: AttentionOptions,
        *added: Tensor | None,
    ) -> Tensor:
        parameters, ctx.options = (w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o), options.without_tensors()
        needs_bias_grad = any(ctx.needs_input_grad[10:])
        y, (q, k, v, o, lse), ctx.calls = _block(x, parameters, options, needs_bias_grad=needs_bias_grad)
        # x, q, k, v and o are each O(T) and would cost a product to recompute. P and R are O(T²) and are recomputed by
        # tiles, R from its seed. The weights are the parameters themselves.
        ctx.save_for_backward(x, q, k, v, o, lse, w_q, w_k, w_v, w_o, *options.mask.boolean_masks, *added)
        return unaliased(y)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, q, k, v, o, lse, w_q, w_k, w_v, w_o, *masks = ctx.saved_tensors
        options = ctx.options.with_tensors(*masks)
        need_x, need_wq, need_bq, need_wk, need_bk, need_wv, need_bv, need_wo, need_bo, _, *needs = ctx.needs_input_grad
        dx = dw_q = db_q = dw_k = db_k = dw_v = db_v = None
        dbias_tensors = BiasTensors()
        needs_heads = need_x or need_wq or need_bq or need_wk or need_bk or need_wv or need_bv or any(needs)
        with torch.autocast(x.device.type, enabled=False):
            dw_o = mathematics.project_backward_weight(dy, mathematics.merge_heads(o)) if need_wo else None  # (6)
            db_o = mathematics.project_backward_bias(dy) if need_bo else None
            if needs_heads:
                do = mathematics.split_heads(mathematics.project_backward_input((dy, w_o)), options.num_heads)
                # (5) to (2)
                dq, dk, dv, dbias_tensors = _attend_backward(do, q, k, v, o, lse, ctx.calls, options, needs=needs)
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
        return dx, dw_q, db_q, dw_k, db_k, dw_v, db_v, dw_o, db_o, None, *dbias_tensors


class AttentionCore(torch.autograd.Function):
    """Autograd function of steps (2) to (5): q, k [B, H, T, D], v [B, H, T, E], … -> o [B, H, T, E]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: AttentionOptions,
        *added: Tensor | None,
    ) -> Tensor:
        ctx.options, needs_bias_grad = options.without_tensors(), any(ctx.needs_input_grad[4:])
        o, lse, ctx.calls = _attend(q, k, v, options, needs_bias_grad=needs_bias_grad)
        ctx.save_for_backward(q, k, v, o, lse, *options.mask.boolean_masks, *added)
        return o

    @staticmethod
    @first_order_only
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, o, lse, *masks = ctx.saved_tensors
        options, needs = ctx.options.with_tensors(*masks), ctx.needs_input_grad[4:]
        with torch.autocast(q.device.type, enabled=False):
            dq, dk, dv, dbias_tensors = _attend_backward(do, q, k, v, o, lse, ctx.calls, options, needs=needs)
        return dq, dk, dv, None, *dbias_tensors


def self_attention(x: Tensor, parameters: tuple[Tensor | None, ...], options: AttentionOptions) -> Tensor:
    """Return y [B, T, M] of steps (1) to (6); differentiable if gradients are enabled.

    Args:
        x: Hidden states [B, T, C].
        parameters: w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o; biases may be None.
        options: The other arguments of the call.
    """
    if torch.is_grad_enabled() or is_forward_mode_active():
        return SelfAttention.apply(x, *parameters, options, *options.mask.bias_tensors)
    return _block(x, parameters, options, needs_bias_grad=False)[0]


def attention_core(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
    """Return o [B, H, T, E] of steps (2) to (5); differentiable. q, k: [B, H, T, D]; v: [B, H, T, E]."""
    return AttentionCore.apply(q, k, v, options, *options.mask.bias_tensors)


def _block(
    x: Tensor, parameters: tuple[Any, ...], options: AttentionOptions, *, needs_bias_grad: bool
) -> tuple[Tensor, tuple[Any, ...], BackendCalls]:
    """Return steps (1) to (6): y, (q, k, v, o, log-sum-exp), and the backend calls."""
    w_q, b_q, w_k, b_k, w_v, b_v, w_o, b_o = parameters
    q = _heads(mathematics.project(x, w_q, b_q), options.num_heads)  # (1)
    k = _heads(mathematics.project(x, w_k, b_k), options.num_heads)
    v = _heads(mathematics.project(x, w_v, b_v), options.num_heads)
    o, lse, calls = _attend(q, k, v, options, needs_bias_grad=needs_bias_grad)  # (2) to (5)
    y = mathematics.project(mathematics.merge_heads(o), w_o, b_o)  # (6)
    return y, (q, k, v, o, lse), calls


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """Return [B, T, H·D] as [B, H, T, D]; on a CPU as a contiguous copy if there are many frames.

    Cores read the frames of a head many times, which is faster when they are contiguous.
    """
    heads = mathematics.split_heads(x, num_heads)
    return heads.contiguous() if x.device.type == "cpu" and x.shape[1] >= CONTIGUOUS_THRESHOLD else heads


def _attend(
    q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, *, needs_bias_grad: bool
) -> tuple[Tensor, Tensor | None, BackendCalls]:
    """Return steps (2) to (5) of the selected backends: o, log-sum-exp, and the backend calls."""
    mask = options.mask

    def attend(
        q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask
    ) -> tuple[Tensor, Tensor | None, tuple[select.Backend, Any]]:
        backend = select.select_backend(
            options.backend, q, v, mask, dropout=options.dropout, needs_bias_grad=needs_bias_grad
        )
        o, lse, context = backend.forward(q, k, v, mask, scale=options.scale, dropout=options.dropout)
        return o, lse, (backend, context)

    if mask.lengths is None:
        o, lse, call = attend(q, k, v, mask)
        return o, lse, (call,)
    varlen_backend = select.select_varlen(
        options.backend, q, v, mask, dropout=options.dropout, needs_bias_grad=needs_bias_grad
    )
    if varlen_backend is not None:
        o, lse, context = varlen_backend.forward(q, k, v, mask, scale=options.scale, dropout=options.dropout)
        return o, lse, ((varlen_backend, context),)
    attended = (attend(q[:, :, n], k[:, :, n], v[:, :, n], mask.slice_frames(n)) for n in mask.recording_slices)
    outputs, sums, calls = zip(*attended, strict=True)
    o = mathematics.split_heads(torch.cat([mathematics.merge_heads(o) for o in outputs], 1), options.num_heads)
    # Some backends return no log-sum-exp, and one batch may use several backends.
    lse = None if all(one is None for one in sums) else _concatenate_lse(sums, outputs)
    return o, lse, calls


def _concatenate_lse(sums: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Tensor:
    """Return the log-sum-exp of packed recordings, [1, H, ΣT]; uninitialised for recordings that have none."""
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
    calls: BackendCalls,
    options: AttentionOptions,
    *,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, BiasTensors]:
    """Return dq, dk, dv and the gradients of the bias tensors: steps (5) to (2), from the gradient of o."""
    mask, arguments = options.mask, {"scale": options.scale, "dropout": options.dropout, "needs": needs}
    if len(calls) == 1:
        ((backend, context),) = calls
        dq, dk, dv, dbias_tensors = backend.backward(do, q, k, v, o, lse, context, mask, **arguments)
    else:
        gradients = []
        for n, (backend, context) in zip(mask.recording_slices, calls, strict=True):
            tensors = (None if x is None else x[:, :, n] for x in (do, q, k, v, o, lse))
            gradients.append(backend.backward(*tensors, context, mask.slice_frames(n), **arguments))  # type: ignore[arg-type]
        dq, dk, dv = (
            mathematics.split_heads(torch.cat([mathematics.merge_heads(d[i]) for d in gradients], 1), options.num_heads)
            for i in range(3)
        )
        dbias_tensors = BiasTensors.concatenate([d[3] for d in gradients])
    pairs = zip(dbias_tensors, mask.bias_tensors, strict=True)
    return dq, dk, dv, BiasTensors(*(None if d is None else d.to(x.dtype) for d, x in pairs))
