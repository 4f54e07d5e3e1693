"""The least time for features: the operations they take, over the rate of matrix products that this machine reaches."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.benchmarks.measuring import seconds

ROWS, GPU_SIZE = 1500, 8192  # half a minute of frames; a square that fills a GPU


def product_rates(config: Any, dtype: torch.dtype, device: torch.device, *, repeats: int = 9) -> dict[str, float]:
    """GFLOP/s of matrix products, the median of some: way to compute them -> rate.

    On a CPU half a minute of frames times the feed-forward's first weight, on a GPU a large square.
    """
    rows, inner, outer = ROWS, config.hidden_size, config.intermediate_size
    if device.type == "cuda":
        rows = inner = outer = GPU_SIZE
    x = torch.randn(rows, inner, device=device).to(dtype)
    weight = (torch.randn(outer, inner, device=device) / inner**0.5).to(dtype)
    rates = {}
    with torch.no_grad():
        for name, product in _products(x, weight):
            product()
            taken = statistics.median(seconds(product, device) for _ in range(repeats))
            rates[name] = 2e-9 * rows * inner * outer / taken
    return rates


def _products(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    if x.device.type == "cuda":
        yield "torch.mm", lambda: torch.mm(x, weight)
        return
    yield "F.linear", lambda: F.linear(x, weight)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, AttributeError):  # a torch without oneDNN, or a processor without this dtype
        return
    yield "oneDNN, prepacked weight", lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
