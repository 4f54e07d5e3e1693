"""What a recording costs before it is computed: operations, and from them seconds on this machine.

Source: the sizes in the config; a multiplication and an addition count as two operations.
"""

import time
from functools import cache
from typing import Any

import torch

from w2v_attn.ops import gemm

SAMPLE_RATE, FILTER_BANK_RATE = 16_000, 50  # Hz; frames of filter banks, two by two, a second
# The product that rates are taken at: ten seconds of frames times the first weight of base's feed-forward; five minutes
# of them on a GPU, which a smaller product does not fill.
ROWS, ACCELERATOR_ROWS, INNER, OUTER = 512, 16_384, 768, 3072
# Of the rate of products, what an encoder with all around them has reached on CPUs.
SHARE = 0.7


def operations(config: Any, duration: float, *, blocks: int | None = None, attended: int | None = None) -> float:
    """GFLOP, 2 × multiply-adds, of one recording computed alone.

    duration: seconds. blocks: how many, None for all. attended: frames that a frame attends, None for all.
    """
    blocks = config.num_hidden_layers if blocks is None else blocks
    frames, channels, total = int(duration * SAMPLE_RATE), 1, 0
    if hasattr(config, "conv_kernel"):
        for kernel, stride, out in zip(config.conv_kernel, config.conv_stride, config.conv_dim, strict=True):
            frames = (frames - kernel) // stride + 1
            total += 2 * kernel * channels * out * frames
            channels = out
    else:  # filter banks: next to nothing
        frames, channels = int(duration * FILTER_BANK_RATE), config.feature_projection_input_dim
    C = config.hidden_size
    total += 2 * channels * C * frames  # feature projection
    projections, feed_forward = 2 * 4 * C * C * frames, 2 * 2 * C * config.intermediate_size * frames
    core = 4 * frames * min(frames, attended or frames) * C  # Q Kᵀ and P V
    if hasattr(config, "conv_depthwise_kernel_size"):  # a Conformer: two feed-forwards, and convolutions between them
        feed_forward = 2 * feed_forward + 2 * (3 * C + config.conv_depthwise_kernel_size) * C * frames
    else:
        total += 2 * config.num_conv_pos_embeddings * (C // config.num_conv_pos_embedding_groups) * C * frames
    return (total + blocks * (projections + feed_forward + core)) / 1e9


@cache
def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of matrix products on this machine, from a few of them: some milliseconds, once in a process."""
    rows = ROWS if device.type == "cpu" else ACCELERATOR_ROWS
    x, weight = torch.randn(rows, INNER, device=device).to(dtype), torch.randn(OUTER, INNER, device=device).to(dtype)
    linear = gemm.prepare_linear(weight, None)

    def taken() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        linear(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return 2e-9 * rows * INNER * OUTER / min(taken() for _ in range(5))
