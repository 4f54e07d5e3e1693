"""The sdpa backend: torch's kernels of scaled dot product attention, each with its own backward.

On a CPU that is flash attention; on CUDA flash attention if nothing is masked (float16, bfloat16), and memory-efficient
attention otherwise. The backward is the matching kernel, so nothing of size T² is saved here either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.attention.masks import AttentionMask, BiasTensors
from w2v_attn.ops.numerics import softmax_dtype

aten = torch.ops.aten

CUDA_FLASH_DTYPES = (torch.float16, torch.bfloat16)
MAX_FLASH_CHANNELS, MIN_FLASH_CAPABILITY = 256, (8, 0)
# The memory-efficient kernel requires every row of the bias to start at a multiple of 16 elements.
BIAS_ALIGNMENT = 16
# Frames up to which all T² position biases are stored: with 16 heads a quarter of a gigabyte of float32.
MAX_BIAS_FRAMES = 2048
ALL_DROPPED = "the kernels divide by 1 − dropout, which is 0 for dropout=1"


@dataclass(frozen=True)
class SdpaContext:
    """What the backward needs besides the tensors of the interface: the kernel that ran and its random state (CUDA)."""

    kernel: str
    random_state: tuple[Tensor, Tensor] | None = None
    max_frames: tuple[int, int] = (0, 0)


CPU_FLASH = SdpaContext("cpu flash")


def unsupported_reason(
    q: Tensor, v: Tensor, mask: AttentionMask, *, dropout: float, needs_bias_grad: bool
) -> str | None:
    """Return why the kernels do not support this request; None if they do."""
    device = q.device.type
    if mask.positions is not None and q.shape[2] > MAX_BIAS_FRAMES:
        return f"the sdpa kernels store all T² position biases, up to {MAX_BIAS_FRAMES} frames, got {q.shape[2]}"
    if dropout >= 1:
        return ALL_DROPPED
    if device not in ("cpu", "cuda"):
        return f"there is no sdpa kernel for the device {device}"
    if q.shape[-1] != v.shape[-1]:
        return (
            f"the sdpa kernels need as many channels per head in values as in keys, got {v.shape[-1]} and {q.shape[-1]}"
        )
    if device == "cpu":
        if dropout > 0:
            return "the sdpa CPU kernel has no dropout"
        if needs_bias_grad:
            return "the sdpa CPU kernel has no gradient for what is added to the scores"
    elif q.dtype not in (*CUDA_FLASH_DTYPES, torch.float32) or q.shape[-1] % 8:
        return (
            "the sdpa CUDA kernels need single or half precision and 8·n channels per head, "
            f"got {q.dtype} and {q.shape[-1]}"
        )
    return None


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, scale: float, dropout: float
) -> tuple[Tensor, Tensor, SdpaContext]:
    """See `select.Forward`."""
    num_frames = q.shape[2]
    q, k, v = (unit_stride(x) for x in (q, k, v))
    if q.device.type == "cpu":
        o, lse = _cpu_forward(q, k, v, mask, scale)
        context = CPU_FLASH
    elif _cuda_flash_supports(q, mask):
        o, lse, _, _, max_q, max_k, seed, offset, _ = aten._scaled_dot_product_flash_attention(
            q, k, v, dropout, mask.causal, False, scale=scale
        )
        context = SdpaContext("cuda flash", (seed, offset), (max_q, max_k))
    else:
        bias = _aligned_bias(mask, q)
        causal = mask.causal and bias is None
        o, lse, seed, offset = aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, dropout, causal, scale=scale
        )
        context = SdpaContext("cuda efficient", (seed, offset))
    empty = mask.rows_without_keys(num_frames)
    if empty is not None:
        o.masked_fill_(empty.unsqueeze(-1), 0.0)
    return o, lse, context


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    context: SdpaContext,
    mask: AttentionMask,
    *,
    scale: float,
    dropout: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, BiasTensors]:
    """See `select.Backward`."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    empty = mask.rows_without_keys(q.shape[2])
    if empty is not None:
        # The kernel gave these rows some attention weights. With dO = 0, their δ and dS are 0 whatever the weights.
        do = do.masked_fill(empty.unsqueeze(-1), 0.0)
    if context is CPU_FLASH:
        assert not any(needs)
        return *_cpu_backward(do, q, k, v, o, lse, mask, scale), BiasTensors()
    assert context.random_state is not None
    seed, offset = context.random_state
    if context.kernel == "cuda flash":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            do, q, k, v, o, lse, None, None, *context.max_frames, dropout, mask.causal, seed, offset, scale=scale
        )
        return dq, dk, dv, BiasTensors()
    bias = _aligned_bias(mask, q)
    causal = mask.causal and bias is None
    dq, dk, dv, ds = aten._scaled_dot_product_efficient_attention_backward(
        do, q, k, v, bias, o, lse, seed, offset, dropout, (True, True, True, any(needs)), causal, scale=scale
    )
    return dq, dk, dv, mask.bias_backward(ds.to(softmax_dtype(q)), needs) if any(needs) else BiasTensors()


def unit_stride(x: Tensor) -> Tensor:
    """Return x with stride 1 along the channels, which the kernels require but do not check; copied only if needed."""
    return x if x.stride(-1) == 1 else x.contiguous()


# ------------------------------------------------------------------------------------------------------- CPU


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> tuple[Tensor, Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, mask.causal, attn_mask=bias, scale=scale)

    counts = _padded_at_end(mask, q)
    if counts is None:  # no padding, or other masks, too
        return attend(q, k, v, mask.as_bias(q, softmax_dtype(q), with_causal=False))
    # Padding at the end needs no mask if the keys of each recording are sliced to the real ones.
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
    """Return the number of real keys of each recording if nothing but padding at the end is masked; else None."""
    if mask.padding is None or not mask.only_padding():
        return None
    counts = mask.key_counts(q.shape[0], q.shape[2])
    at_end = torch.arange(q.shape[2], device="cpu") < torch.tensor(counts, device="cpu")[:, None]
    return counts if torch.equal(at_end, mask.padding) else None


# ------------------------------------------------------------------------------------------------------ CUDA


def _cuda_flash_supports(q: Tensor, mask: AttentionMask) -> bool:
    return (
        q.dtype in CUDA_FLASH_DTYPES
        and not mask.restricts_keys
        and mask.positions is None
        and q.shape[-1] <= MAX_FLASH_CHANNELS
        and torch.cuda.get_device_capability(q.device) >= MIN_FLASH_CAPABILITY
    )


def _aligned_bias(mask: AttentionMask, q: Tensor) -> Tensor | None:
    """Return the mask as [B, H, T, T] in the dtype of q, a view with the row alignment that the kernel requires."""
    B, H, T, _ = q.shape
    if not mask.restricts_keys and mask.positions is None:
        return None  # the kernel has an argument for causal
    bias = mask.as_bias(q, q.dtype)
    assert bias is not None
    aligned = bias.new_empty(*bias.shape[:3], -(-T // BIAS_ALIGNMENT) * BIAS_ALIGNMENT)
    aligned[..., :T] = bias
    return aligned[..., :T].expand(B, H, T, T)
