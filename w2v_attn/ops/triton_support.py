"""Whether Triton is there, and whether it compiles and runs a kernel on a device."""

import importlib.util
import logging
import os
from functools import cache
from typing import Any

import torch

logger = logging.getLogger(__name__)

CAPABILITY = (8, 0)  # older ones have no bfloat16, and Triton no use for their tensor cores
# Channels of the row that the check computes.
CHECKED_CHANNELS = 16


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, which works, slowly, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def is_available(device: torch.device) -> bool:
    """Whether Triton compiles and runs a kernel on this CUDA device, and its result is right.

    It needs a C compiler, which slim images lack. Asked where torch's own operators would do, too.
    """
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    try:
        return _is_right(device)
    except Exception as error:  # a compiler fails in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("Triton does not work here, and torch's own operators are slower: %s", reason)
        return False


def _is_right(device: torch.device) -> bool:
    from w2v_attn.ops import fusion_kernels

    x = torch.arange(CHECKED_CHANNELS, dtype=torch.float32, device=device)[None]
    found = torch.zeros_like(x)
    with torch.cuda.device_of(x):
        norm: Any = fusion_kernels.norm[(1,)]
        norm(
            x, None, None, None, None, None, found, CHECKED_CHANNELS, 0.0,
            PADDED=CHECKED_CHANNELS, GELU=False, num_warps=1,
        )  # fmt: skip
    return torch.allclose(found, torch.nn.functional.layer_norm(x, x.shape[1:], eps=0.0), atol=1e-5)
