# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""The mathematics of multi-head self-attention: its derivation, and the same equations as code.

Legend
    B  recordings              T  frames                  C  channels of the input
    H  heads                   I  rows (queries) of one tile
    D  channels per head of queries and keys    (H·D = key_size)
    E  channels per head of values              (H·E = value_size)
    M  channels of the output
    s  scale, 1/√D unless given                 p  rate of dropout
A suffix spells the axes of a tensor: `q_HID` is [heads, rows, channels]. The gradient of a quantity x is `dx`.

Forward
    (1)  Q = X Wqᵀ + bq        K = X Wkᵀ + bk        V = X Wvᵀ + bv
    (2)  S = s Q Kᵀ + bias     and −∞ where a query may not attend a key
    (3)  P = softmax(S) = exp(S − L)          with L = log Σⱼ exp Sⱼ, one number per row
    (4)  P̃ = R ∘ P / (1 − p)                  R is 1 where an entry is kept and 0 where it is dropped
    (5)  O = P̃ V                              each head separately; the heads are then concatenated
    (6)  Y = O Woᵀ + bo

Backward, undoing the steps by number
    (6)  dO = dY Wo            dWo = dYᵀ O           dbo = Σ dY over recordings and frames
    (5)  dV = P̃ᵀ dO            dP̃ = dO Vᵀ
    (4)  dP = R ∘ dP̃ / (1 − p)
    (3)  A row of the softmax has the Jacobian ∂Pᵢ/∂Sⱼ = Pᵢ (δᵢⱼ − Pⱼ), so dS = P ∘ (dP − Σⱼ Pⱼ dPⱼ). The sum needs
         no row of P:  Σⱼ Pⱼ dPⱼ = Σⱼ P̃ⱼ dP̃ⱼ = Σⱼ P̃ⱼ Σₑ dOₑ Vⱼₑ = Σₑ dOₑ Oₑ.
         δ = rowsum(dO ∘ O)    dS = P ∘ (dP − δ)
    (2)  dQ = s dS K           dK = s dSᵀ Q          dbias = dS, summed where the bias was broadcast
    (1)  dX = dQ Wq + dK Wk + dV Wv                  dWq = dQᵀ X     dbq = Σ dQ      (k and v likewise)

Nothing of size T² is saved. Saved are X, Q, K, V and O; a tile of P is recomputed with (2) and (3), and a tile of R
from its seed. A kernel that reads a row in several tiles saves L too and recomputes P as exp(S − L); here a tile has
whole rows. The functions for steps (2) to (5) take a tile of rows, because that is how they run: `backends/tiled.py`
loops over all tiles, and `backends/sdpa.py` calls the platform's kernel instead.

A row that may attend no key has P = 0 by definition, and so O = 0 and no gradient.

Input and output widths need not be equal. Heads split the key and value channels among them; their outputs are
concatenated (H·E channels, independent of C), and (6) projects them to any width M.

Source: A. Vaswani et al., "Attention Is All You Need", section 3.2, for (1) to (6); T. Dao et al., "FlashAttention",
appendix B, for the row sum δ and the log-sum-exp L.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from w2v_attn.ops import gemm

INFINITY = float("inf")

# Adds position biases to scores [H, I, T] in place; see `relative.py`.
BiasFn = Callable[[Tensor], object]


# ---------------------------------------------------------------------------------------------- (1) and (6)


def project(x_BTC: Tensor, weight_MC: Tensor, bias_M: Tensor | None) -> Tensor:
    """Return x Wᵀ + b of steps (1) and (6), [B, T, M]."""
    return gemm.linear(x_BTC, weight_MC, bias_M)


def project_backward_weight(dy_BTM: Tensor, x_BTC: Tensor) -> Tensor:
    """Return dW = dYᵀ X, [M, C]."""
    return gemm.linear(dy_BTM.flatten(0, 1).T, x_BTC.flatten(0, 1).T)


def project_backward_bias(dy_BTM: Tensor) -> Tensor:
    """Return db = Σ dY over recordings and frames, [M]."""
    return dy_BTM.sum((0, 1))


def project_backward_input(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return dX = Σ dYᵢ Wᵢ over the projections of X, [B, T, C]. pairs: (dy_BTM, weight_MC) of each projection."""
    (dy_BTM, weight_MC), *others = pairs
    dx_BTC = gemm.linear(dy_BTM, weight_MC.T)
    for dy, weight in others:
        dx_BTC += gemm.linear(dy, weight.T)
    return dx_BTC


def split_heads(x_BTM: Tensor, num_heads: int) -> Tensor:
    """Return [B, T, H·D] as a view [B, H, T, D]."""
    B, T, M = x_BTM.shape
    return x_BTM.view(B, T, num_heads, M // num_heads).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    """Return the concatenated heads: [B, H, T, D] as [B, T, H·D]; a view if the memory layout is [B, T, H, D]."""
    return x_BHTD.transpose(1, 2).flatten(2)


# ------------------------------------------------------------------------- (2) to (5), a tile of rows at a time


def attend_rows(
    q_HID: Tensor,
    k_HTD: Tensor,
    v_HTE: Tensor,
    *,
    scale: float,
    bias_HIT: Tensor | None = None,
    allowed_HIT: Tensor | None = None,
    keep_HIT: Tensor | None = None,
    keep_rate: float = 1.0,
    bias_fn: BiasFn | None = None,
) -> Tensor:
    """Return o [H, I, E] of steps (2) to (5) for a tile of rows and all their keys; 0 in rows that may attend no key.

    Args:
        q_HID: Queries.
        k_HTD: Keys.
        v_HTE: Values.
        scale: Factor s on the scores.
        bias_HIT: Added to the scores.
        allowed_HIT: bool, True = attend.
        keep_HIT: R of dropout, 1 = kept, in the dtype of q.
        keep_rate: 1 − p.
        bias_fn: Adds position biases to the scores in place.
    """
    p_HIT = row_weights(q_HID * scale, k_HTD, bias_HIT, allowed_HIT, bias_fn)  # (2), (3)
    if keep_HIT is not None:
        p_HIT.mul_(keep_HIT)  # (4)
    o_HIE = gemm.bmm(p_HIT, v_HTE)  # (5)
    # Dividing the I·E outputs by 1 − p is less work than dividing the I·T attention weights.
    return o_HIE if keep_HIT is None else o_HIE.div_(keep_rate)


def attend_rows_backward(
    do_HIE: Tensor,
    q_HID: Tensor,
    k_HTD: Tensor,
    v_HTE: Tensor,
    delta_HI: Tensor,
    *,
    scale: float,
    dk_HTD: Tensor,
    dv_HTE: Tensor,
    bias_HIT: Tensor | None = None,
    allowed_HIT: Tensor | None = None,
    keep_HIT: Tensor | None = None,
    keep_rate: float = 1.0,
    bias_fn: BiasFn | None = None,
) -> tuple[Tensor, Tensor]:
    """Return dq [H, I, D] and ds [H, I, T] of a tile of rows: the backward of `attend_rows`.

    Args:
        do_HIE: Gradient of the output.
        q_HID: Queries.
        k_HTD: Keys.
        v_HTE: Values.
        delta_HI: δ of the rows, see `row_sums`.
        scale: Factor s on the scores.
        dk_HTD: Gradient of the keys, to which that of the tile is added.
        dv_HTE: Gradient of the values, to which that of the tile is added.
        bias_HIT: As in `attend_rows`.
        allowed_HIT: As in `attend_rows`.
        keep_HIT: As in `attend_rows`.
        keep_rate: As in `attend_rows`.
        bias_fn: As in `attend_rows`.
    """
    q_HID = q_HID * scale
    if keep_HIT is not None:
        do_HIE = do_HIE / keep_rate  # 1/(1 − p) of (4), which enters dv and dp
    p_HIT = row_weights(q_HID, k_HTD, bias_HIT, allowed_HIT, bias_fn)
    kept_HIT = p_HIT if keep_HIT is None else p_HIT * keep_HIT
    dv_HTE += gemm.bmm_tn(kept_HIT, do_HIE)  # (5)
    dp_HIT = gemm.bmm_nt(do_HIE, v_HTE)
    if keep_HIT is not None:
        dp_HIT.mul_(keep_HIT)  # (4)
    ds_HIT = dp_HIT.sub_(delta_HI.unsqueeze(-1)).mul_(p_HIT)  # (3)
    dk_HTD += gemm.bmm_tn(ds_HIT, q_HID)  # (2); q is scaled already
    return gemm.bmm(ds_HIT, k_HTD).mul_(scale), ds_HIT


def softmax_backward(p_HIT: Tensor, dp_HIT: Tensor) -> Tensor:
    """Return dS of step (3) from dP itself instead of dO: dS = P ∘ (dP − rowsum(P ∘ dP))."""
    return (dp_HIT - (p_HIT * dp_HIT).sum(-1, keepdim=True)).mul_(p_HIT)


def row_sums(do_BHTE: Tensor, o_BHTE: Tensor) -> Tensor:
    """Return δ = rowsum(dO ∘ O), [B, H, T]."""
    return (do_BHTE * o_BHTE).sum(-1)


def row_weights(
    scaled_q_HID: Tensor,
    k_HTD: Tensor,
    bias_HIT: Tensor | None,
    allowed_HIT: Tensor | None,
    bias_fn: BiasFn | None = None,
) -> Tensor:
    """Return P of (3), [H, I, T]. A tile has whole rows, so forward and backward compute identical sums."""
    s_HIT = row_scores(scaled_q_HID, k_HTD, bias_HIT, allowed_HIT, bias_fn)
    if bias_HIT is None and allowed_HIT is None:
        return torch.softmax(s_HIT, -1, out=s_HIT)
    empty_HI1 = s_HIT.amax(-1, keepdim=True) == -INFINITY
    return torch.softmax(s_HIT, -1, out=s_HIT).masked_fill_(empty_HI1, 0.0)  # softmax of a row of −∞ is NaN


def row_scores(
    scaled_q_HID: Tensor,
    k_HTD: Tensor,
    bias_HIT: Tensor | None,
    allowed_HIT: Tensor | None,
    bias_fn: BiasFn | None = None,
) -> Tensor:
    """Return S of (2), [H, I, T], from queries that are scaled already."""
    s_HIT = gemm.bmm_nt(scaled_q_HID, k_HTD)
    if bias_HIT is not None:
        s_HIT.add_(bias_HIT)
    if bias_fn is not None:
        bias_fn(s_HIT)
    if allowed_HIT is not None:
        s_HIT.masked_fill_(~allowed_HIT, -INFINITY)
    return s_HIT
