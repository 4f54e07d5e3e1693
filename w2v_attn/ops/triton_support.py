"""Check whether Triton is installed, and whether it compiles and runs a kernel on a device."""

import importlib.util
import logging
import os
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 0)  # older GPUs lack bfloat16, and Triton does not use their tensor cores
# Channels of the row that the self-test computes.
CHECKED_CHANNELS = 16


def is_interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter, which is slow but runs on any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def is_available(device: torch.device) -> bool:
    """Return whether Triton compiles and runs a kernel on this CUDA device with the right result.

    Triton needs a C compiler, which slim images lack. Callers fall back to torch's own operators.
    """
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    try:
        return _is_right(device)
    except Exception as error:  # a compiler fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("Triton cannot compile or run kernels here; using torch's slower operators instead: %s", reason)
        return False


def _is_right(device: torch.device) -> bool:
    from w2v_attn.ops import fusion_kernels

    x = torch.arange(CHECKED_CHANNELS, dtype=torch.float32, device=device)[None]
    found = torch.zeros_like(x)
    with torch.cuda.device_of(x):
        norm: Any = fusion_kernels.layer_norm_kernel[(1,)]
        norm(
            x, None, None, None, None, None, found, CHECKED_CHANNELS, 0.0,
            PADDED=CHECKED_CHANNELS, GELU=False, num_warps=1,
        )  # fmt: skip
    return torch.allclose(found, torch.nn.functional.layer_norm(x, x.shape[1:], eps=0.0), atol=1e-5)
