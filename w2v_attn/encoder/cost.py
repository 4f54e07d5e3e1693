"""The cost of a recording before it is computed: operations, seconds on this machine, and the memory there is.

Source: the sizes in the config; a multiplication and an addition count as two operations.
"""

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from w2v_attn.checkpoints.encoder_parts import encoder_config
from w2v_attn.ops import gemm

SAMPLE_RATE, FILTER_BANK_RATE = 16_000, 50  # Hz; filter-bank frames per second, stacked in pairs
# The matrix product that rates are measured with: ten seconds of frames times the first weight of base's feed-forward;
# five minutes of them on a GPU, which a smaller product does not fill.
ROWS, ACCELERATOR_ROWS, INNER, OUTER = 512, 16_384, 768, 3072
# The rate that a whole encoder reaches on CPUs over the rate of its matrix products.
ENCODER_EFFICIENCY = 0.7
# Seconds of audio, and expected seconds of computing, above which a run logs the expected time of a recording.
LONG_RECORDING, LONG_WAIT = 300.0, 120.0
# Where Linux gives the memory limit of a container, in both versions of control groups.
MEMORY_LIMIT_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def operations(config: Any, duration: float, *, blocks: int | None = None, attended: int | None = None) -> float:
    """Return the operations of one recording in GFLOP, 2 × multiply-adds.

    Args:
        config: The config of a Hugging Face model.
        duration: Length of the recording in seconds.
        blocks: How many transformer blocks run; None: all of them.
        attended: How many frames each frame attends to; None: all of them.
    """
    config = encoder_config(config)
    blocks = config.num_hidden_layers if blocks is None else blocks
    frames, channels, total = int(duration * SAMPLE_RATE), 1, 0
    if hasattr(config, "conv_kernel"):
        for kernel, stride, out in zip(config.conv_kernel, config.conv_stride, config.conv_dim, strict=True):
            frames = (frames - kernel) // stride + 1
            total += 2 * kernel * channels * out * frames
            channels = out
    else:  # the cost of filter banks is negligible
        frames, channels = int(duration * FILTER_BANK_RATE), config.feature_projection_input_dim
    C = config.hidden_size
    total += 2 * channels * C * frames  # feature projection
    projections, feed_forward = 2 * 4 * C * C * frames, 2 * 2 * C * config.intermediate_size * frames
    attention = 4 * frames * min(frames, attended or frames) * C  # Q Kᵀ and P V
    if hasattr(config, "conv_depthwise_kernel_size"):  # a Conformer: two feed-forwards, and convolutions between them
        feed_forward = 2 * feed_forward + 2 * (3 * C + config.conv_depthwise_kernel_size) * C * frames
    else:
        total += 2 * config.num_conv_pos_embeddings * (C // config.num_conv_pos_embedding_groups) * C * frames
    return (total + blocks * (projections + feed_forward + attention)) / 1e9


@cache
def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the rate of matrix products on this machine in GFLOP/s, measured in some milliseconds, once a process."""
    rows = ROWS if device.type == "cpu" else ACCELERATOR_ROWS
    x, weight = torch.randn(rows, INNER, device=device).to(dtype), torch.randn(OUTER, INNER, device=device).to(dtype)
    linear = gemm.prepare_linear(weight, None)

    def time_once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        linear(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return 2e-9 * rows * INNER * OUTER / min(time_once() for _ in range(5))


def memory_limit() -> int | None:
    """Return the bytes of memory that this process can use: of the machine, or of its container.

    Memory in use counts too, so that the limit is the same in each run. None where the system does not report it.
    """
    known = [limit for path in MEMORY_LIMIT_FILES if (limit := _read_limit(path)) is not None]
    if hasattr(os, "sysconf"):  # not on Windows
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(known, default=None)


def _read_limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or the word "max"
        return None
