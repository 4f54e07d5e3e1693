"""The attention core over recordings that lie side by side: each attends itself alone, and nothing is padded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.attention import cores
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import merge_heads, split_heads


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    *,
    num_heads: int,
    scale: float,
    backend: str = "auto",
    mask: AttentionMask = NO_MASK,
) -> Tensor:
    """Steps (2) to (5) of each recording: [ΣT, H·E]. q, k: [ΣT, H·D]; v: [ΣT, H·E]. Not differentiable."""
    outputs = []
    parts = (x.split(list(lengths)) for x in (q, k, v))
    for q_part, k_part, v_part in zip(*parts, strict=True):
        q_1HTD, k_1HTD, v_1HTE = (split_heads(x[None], num_heads) for x in (q_part, k_part, v_part))
        core = cores.choose(backend, q_1HTD, v_1HTE, mask, dropout=0.0, needs_bias=False)
        o, _, _ = core.forward(q_1HTD, k_1HTD, v_1HTE, mask, scale=scale, dropout=0.0)
        outputs.append(merge_heads(o)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
