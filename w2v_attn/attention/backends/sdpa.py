"""The sdpa backend: the platform's own kernel, called with the kernel's own backward.

On a CPU that is torch's flash attention; on CUDA flash attention where nothing is masked (float16, bfloat16), and
memory-efficient attention else. Backward is the matching kernel, so nothing of size T² is kept here either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.attention.masks import Added, AttentionMask
from w2v_attn.ops.numerics import softmax_dtype

aten = torch.ops.aten

CUDA_FLASH_DTYPES = (torch.float16, torch.bfloat16)
CUDA_FLASH_CHANNELS, CUDA_FLASH_CAPABILITY = 256, (8, 0)
# The memory-efficient kernel wants every row of the bias to start at a multiple of 16 elements.
BIAS_ALIGNMENT = 16
# Frames of recordings whose position biases are held whole: with 16 heads a quarter of a gigabyte of float32.
MAX_POSITIONS = 2048
ALL_DROPPED = "kernels divide what dropout keeps by its share, and dropout=1 keeps nothing"


@dataclass(frozen=True)
class Memory:
    """What backward needs besides the tensors of the interface: which kernel ran and its random state (CUDA)."""

    kernel: str
    random_state: tuple[Tensor, Tensor] | None = None
    max_frames: tuple[int, int] = (0, 0)


CPU_FLASH = Memory("cpu flash")


def unsupported_reason(q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_added: bool) -> str | None:
    """What of this request the platform's kernels cannot do; None when they can do it all."""
    device = q.device.type
    if mask.positions is not None and q.shape[2] > MAX_POSITIONS:
        return f"the sdpa kernels hold all T² position biases, which is too much beyond {MAX_POSITIONS} frames"
    if dropout >= 1:
        return ALL_DROPPED
    if device not in ("cpu", "cuda"):
        return f"there is no sdpa kernel for the device {device}"
    if q.shape[-1] != v.shape[-1]:
        return (
            f"the sdpa kernels need as many channels a head in values as in keys, got {v.shape[-1]} and {q.shape[-1]}"
        )
    if device == "cpu":
        if dropout > 0:
            return "the sdpa CPU kernel has no dropout"
        if needs_added:
            return "the sdpa CPU kernel has no gradient for what is added to the scores"
    elif q.dtype not in (*CUDA_FLASH_DTYPES, torch.float32) or q.shape[-1] % 8:
        return (
            f"the sdpa CUDA kernels need single or half precision and 8·n channels a head, got {q.dtype} {q.shape[-1]}"
        )
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor, Memory]:
    """See `select.Forward`."""
    num_frames = q.shape[2]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    if q.device.type == "cpu":
        o, lse = _cpu_forward(q, k, v, mask, scale)
        memory = CPU_FLASH
    elif _cuda_flash_serves(q, mask):
        o, lse, _, _, max_q, max_k, seed, offset, _ = aten._scaled_dot_product_flash_attention(
            q, k, v, dropout, mask.causal, False, scale=scale
        )
        memory = Memory("cuda flash", (seed, offset), (max_q, max_k))
    else:
        bias = _aligned_bias(mask, q)
        causal = mask.causal and bias is None
        o, lse, seed, offset = aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, dropout, causal, scale=scale
        )
        memory = Memory("cuda efficient", (seed, offset))
    empty = mask.rows_without_keys(num_frames)
    if empty is not None:
        o.masked_fill_(empty.unsqueeze(-1), 0.0)
    return o, lse, memory


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    memory: Memory,
    mask: AttentionMask,
    *,
    scale: float,
    dropout: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Added]:
    """See `select.Backward`."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    empty = mask.rows_without_keys(q.shape[2])
    if empty is not None:
        # The kernel gave these rows some probabilities. With dO = 0 there, δ and dS are 0 whatever they were.
        do = do.masked_fill(empty.unsqueeze(-1), 0.0)
    if memory is CPU_FLASH:
        assert not any(needs)
        return *_cpu_backward(do, q, k, v, o, lse, mask, scale), Added()
    assert memory.random_state is not None
    seed, offset = memory.random_state
    if memory.kernel == "cuda flash":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            do, q, k, v, o, lse, None, None, *memory.max_frames, dropout, mask.causal, seed, offset, scale=scale
        )
        return dq, dk, dv, Added()
    bias = _aligned_bias(mask, q)
    causal = mask.causal and bias is None
    dq, dk, dv, ds = aten._scaled_dot_product_efficient_attention_backward(
        do, q, k, v, bias, o, lse, seed, offset, dropout, (True, True, True, any(needs)), causal, scale=scale
    )
    return dq, dk, dv, mask.added_backward(ds.to(softmax_dtype(q)), needs) if any(needs) else Added()


def unit_stride(x: Tensor) -> Tensor:
    """The same with the channels of a head next to each other: kernels below torch's dispatch take that for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


# ------------------------------------------------------------------------------------------------------- CPU


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> tuple[Tensor, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, mask.causal, attn_mask=bias, scale=scale)

    counts = _padded_at_end(mask, q)
    if counts is None:  # nothing is masked, or in another way
        return attend(q, k, v, mask.as_bias(q, softmax_dtype(q), with_causal=False))
    # Padding at the end is no mask at all for a recording whose keys are cut to the real ones.
    B, H, T, _ = q.shape
    o = v.new_zeros(B, T, H, v.shape[-1]).transpose(1, 2)
    lse = torch.zeros(B, T, H, dtype=softmax_dtype(q)).transpose(1, 2)
    for b, n in enumerate(counts):
        if n:
            one = slice(b, b + 1)
            o[one], lse[one] = attend(q[one], k[one, :, :n], v[one, :, :n], None)
    return o, lse


def _cpu_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, mask: AttentionMask, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    def attend_backward(
        do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            do, q, k, v, o, lse, 0.0, mask.causal, attn_mask=bias, scale=scale
        )

    counts = _padded_at_end(mask, q)
    if counts is None:
        return attend_backward(do, q, k, v, o, lse, mask.as_bias(q, softmax_dtype(q), with_causal=False))
    B, H, T, D = q.shape
    dq, dk, dv = (q.new_zeros(B, T, H, D).transpose(1, 2) for _ in range(3))
    for b, n in enumerate(counts):
        if n:
            one = slice(b, b + 1)
            dq[one], dk[one, :, :n], dv[one, :, :n] = attend_backward(
                do[one], q[one], k[one, :, :n], v[one, :, :n], o[one], lse[one], None
            )
    return dq, dk, dv


def _padded_at_end(mask: AttentionMask, q: Tensor) -> list[int] | None:
    """How many real keys each recording has, where all masking there is is padding at the end; else None."""
    if mask.padding is None or not mask.only_padding():
        return None
    counts = mask.key_counts(q.shape[0], q.shape[2])
    at_end = torch.arange(q.shape[2], device="cpu") < torch.tensor(counts, device="cpu")[:, None]
    return counts if torch.equal(at_end, mask.padding) else None


# ------------------------------------------------------------------------------------------------------ CUDA


def _cuda_flash_serves(q: Tensor, mask: AttentionMask) -> bool:
    return (
        q.dtype in CUDA_FLASH_DTYPES
        and not mask.forbids
        and mask.positions is None
        and q.shape[-1] <= CUDA_FLASH_CHANNELS
        and torch.cuda.get_device_capability(q.device) >= CUDA_FLASH_CAPABILITY
    )


def _aligned_bias(mask: AttentionMask, q: Tensor) -> Tensor | None:
    """The mask as [B, H, T, T] in q's dtype, expanded without a copy from rows that start where the kernel wants."""
    B, H, T, _ = q.shape
    if not mask.forbids and mask.positions is None:
        return None  # causal or nothing: an argument of the kernel
    bias = mask.as_bias(q, q.dtype)
    assert bias is not None
    aligned = bias.new_empty(*bias.shape[:3], -(-T // BIAS_ALIGNMENT) * BIAS_ALIGNMENT)
    aligned[..., :T] = bias
    return aligned[..., :T].expand(B, H, T, T)
