"""Multi-head self-attention: the derivation, and below it the same equations as code.

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
    (3)  P = softmax(S) = exp(S − L)          with L = log Σⱼ exp Sⱼ, one number a row
    (4)  P̃ = R ∘ P / (1 − p)                  R is 1 where an entry is kept and 0 where it is dropped
    (5)  O = P̃ V                              each head on its own, then the heads side by side
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

Nothing of size T² is kept. Saved are X, Q, K, V and O; a tile of P comes back from (2) and (3), and a tile of R from
the seed it was drawn with. A kernel that sees a row in pieces keeps L too and has P as exp(S − L); here a tile holds
whole rows. Steps (2) to (5) stand here for a tile of rows, because that is how they run: `backends/tiled.py` takes them
over all tiles, `backends/sdpa.py` hands them to the platform's kernel.

A row that may attend no key has P = 0 by definition, and so O = 0 and no gradient.

Input and output widths need not be equal. Heads split the key and value channels among them; what the heads return
stands side by side (H·E wide, whatever C was), and (6) projects it to any width M.

Source: A. Vaswani et al., "Attention Is All You Need", section 3.2, for (1) to (6); T. Dao et al., "FlashAttention",
appendix B, for the row sum δ and the log-sum-exp L.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from w2v_attn.ops import gemm

INFINITY = float("inf")

# Adds to scores [H, I, T] in place; see `relative.py`.
Adder = Callable[[Tensor], object]


# ---------------------------------------------------------------------------------------------- (1) and (6)


def project(x_BTC: Tensor, weight_MC: Tensor, bias_M: Tensor | None) -> Tensor:
    """Steps (1) and (6): x Wᵀ + b, [B, T, M]."""
    return gemm.linear(x_BTC, weight_MC, bias_M)


def project_backward_weight(dy_BTM: Tensor, x_BTC: Tensor) -> Tensor:
    """dW = dYᵀ X, [M, C]."""
    return gemm.linear(dy_BTM.flatten(0, 1).T, x_BTC.flatten(0, 1).T)


def project_backward_bias(dy_BTM: Tensor) -> Tensor:
    """db = Σ dY over recordings and frames, [M]."""
    return dy_BTM.sum((0, 1))


def project_backward_input(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """dX = Σ dYᵢ Wᵢ over the projections that read X, [B, T, C]. pairs: (dy_BTM, weight_MC) of each projection."""
    (dy_BTM, weight_MC), *others = pairs
    dx_BTC = gemm.linear(dy_BTM, weight_MC.T)
    for dy, weight in others:
        dx_BTC += gemm.linear(dy, weight.T)
    return dx_BTC


def split_heads(x_BTM: Tensor, num_heads: int) -> Tensor:
    """[B, T, H·D] seen as [B, H, T, D]; no copy."""
    B, T, M = x_BTM.shape
    return x_BTM.view(B, T, num_heads, M // num_heads).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    """[B, H, T, D] as [B, T, H·D], heads side by side; no copy where frames already come first in memory."""
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
    add: Adder | None = None,
) -> Tensor:
    """Steps (2) to (5) for a tile of rows against all its keys: o [H, I, E], 0 in rows that may attend no key.

    bias: added to the scores. allowed: bool, True = attend. add: adds to the scores in place what positions do.
    keep: R of dropout, 1 = kept, in the dtype of q. keep_rate: 1 − p.
    """
    p_HIT = probabilities(q_HID * scale, k_HTD, bias_HIT, allowed_HIT, add)  # (2), (3)
    if keep_HIT is not None:
        p_HIT.mul_(keep_HIT)  # (4)
    o_HIE = gemm.times(p_HIT, v_HTE)  # (5)
    # Dividing the I·E outputs by 1 − p is less work than dividing the I·T probabilities.
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
    add: Adder | None = None,
) -> tuple[Tensor, Tensor]:
    """Undoes (5) to (2) for a tile of rows: returns dq [H, I, D] and ds [H, I, T].

    The tile's share of dk and dv is added to `dk_HTD` and `dv_HTE`.
    """
    q_HID = q_HID * scale
    if keep_HIT is not None:
        do_HIE = do_HIE / keep_rate  # 1/(1 − p) of (4), once for both places where it enters
    p_HIT = probabilities(q_HID, k_HTD, bias_HIT, allowed_HIT, add)
    kept_HIT = p_HIT if keep_HIT is None else p_HIT * keep_HIT
    dv_HTE += gemm.transposed_times(kept_HIT, do_HIE)  # (5)
    dp_HIT = gemm.times_transposed(do_HIE, v_HTE)
    if keep_HIT is not None:
        dp_HIT.mul_(keep_HIT)  # (4)
    ds_HIT = dp_HIT.sub_(delta_HI.unsqueeze(-1)).mul_(p_HIT)  # (3)
    dk_HTD += gemm.transposed_times(ds_HIT, q_HID)  # (2); s is in q already
    return gemm.times(ds_HIT, k_HTD).mul_(scale), ds_HIT


def softmax_backward(p_HIT: Tensor, dp_HIT: Tensor) -> Tensor:
    """Undoes (3) where dP is given itself and not through dO: dS = P ∘ (dP − rowsum(P ∘ dP))."""
    return (dp_HIT - (p_HIT * dp_HIT).sum(-1, keepdim=True)).mul_(p_HIT)


def row_sums(do_BHTE: Tensor, o_BHTE: Tensor) -> Tensor:
    """δ = rowsum(dO ∘ O), [B, H, T]."""
    return (do_BHTE * o_BHTE).sum(-1)


def probabilities(
    scaled_q_HID: Tensor,
    k_HTD: Tensor,
    bias_HIT: Tensor | None,
    allowed_HIT: Tensor | None,
    add: Adder | None = None,
) -> Tensor:
    """P of (3), [H, I, T]; a tile holds whole rows, so forward and backward find their sums alike."""
    s_HIT = masked_scores(scaled_q_HID, k_HTD, bias_HIT, allowed_HIT, add)
    if bias_HIT is None and allowed_HIT is None:
        return torch.softmax(s_HIT, -1, out=s_HIT)
    empty_HI1 = s_HIT.amax(-1, keepdim=True) == -INFINITY
    return torch.softmax(s_HIT, -1, out=s_HIT).masked_fill_(empty_HI1, 0.0)  # softmax makes NaN of nothing but −∞


def masked_scores(
    scaled_q_HID: Tensor,
    k_HTD: Tensor,
    bias_HIT: Tensor | None,
    allowed_HIT: Tensor | None,
    add: Adder | None = None,
) -> Tensor:
    """S of (2), [H, I, T], from queries that are scaled already."""
    s_HIT = gemm.times_transposed(scaled_q_HID, k_HTD)
    if bias_HIT is not None:
        s_HIT.add_(bias_HIT)
    if add is not None:
        add(s_HIT)
    if allowed_HIT is not None:
        s_HIT.masked_fill_(~allowed_HIT, -INFINITY)
    return s_HIT
