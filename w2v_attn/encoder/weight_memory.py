"""The memory of a model's weights: whether it can be doubled for speed, and whether they fit at all."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.encoder.cost import memory_limit

# The share of a machine's memory that copies of the weights may take: their layouts are up to a tenth faster.
PREPACK_SHARE = 1 / 8
# The share of a machine's memory that weights may take together with everything else that a process needs.
FITTING_SHARE = 0.85


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def device_memory(device: torch.device) -> int | None:
    """Return the bytes of memory of a device, in use or not; None if they are not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_limit() if device.type == "cpu" else None


def can_prepack(model: Any) -> bool:
    """Return whether there is memory for copies of a model's weights in the layouts that are multiplied fastest."""
    memory = device_memory(model.device)
    return memory is None or weight_bytes(model) <= PREPACK_SHARE * memory


def fits(model: Any) -> bool:
    """Return whether a model's weights can stay in memory: else they are read from their files again and again."""
    memory = device_memory(model.device)
    return memory is None or weight_bytes(model) <= FITTING_SHARE * memory


def linear_weights(blocks: nn.Module) -> Iterator[Tensor]:
    """Yield the weights of the linear maps in transformer blocks: nearly all memory of a large model."""
    return (module.weight for module in blocks.modules() if isinstance(module, nn.Linear))
