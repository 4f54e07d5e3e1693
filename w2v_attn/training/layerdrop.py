"""LayerDrop that works in every setting: a block is left out with some probability, and no process waits for it.

Stock transformers leaves a block's parameters without gradients when it drops it, and DistributedDataParallel then
stops with "parameters that were not used". Here a dropped block's parameters get gradients of zero where that matters.

Source: A. Fan et al., "Reducing Transformer Depth on Demand with Structured Dropout"; transformers #11452.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def install(model: nn.Module, *, keep_gradients: bool) -> None:
    """Takes the place of stock's layerdrop in the encoder of `model`; the model's config keeps its value.

    keep_gradients: dropped blocks get zeros as gradients (several processes need that), not none.
    """
    encoder = _encoder(model)
    probability = float(encoder.config.layerdrop)
    if probability == 0:
        return
    encoder.config = copy.copy(encoder.config)
    encoder.config.layerdrop = 0.0
    for block in encoder.layers:
        block.forward = partial(_forward, block, block.forward, probability, keep_gradients)


def uninstall(model: nn.Module) -> None:
    """Stock's layerdrop again."""
    encoder = _encoder(model)
    encoder.config = model.config
    for block in encoder.layers:
        vars(block).pop("forward", None)


def _encoder(model: nn.Module) -> Any:
    """The module that holds the blocks, also inside wrappers."""
    return next(
        module
        for name, module in model.named_modules()
        if name.split(".")[-1] == "encoder" and isinstance(getattr(module, "layers", None), nn.ModuleList)
    )


def _forward(
    block: nn.Module,
    forward: Callable[..., Any],
    probability: float,
    keep_gradients: bool,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not block.training or float(torch.rand([])) >= probability:
        return forward(hidden_states, *args, **kwargs)
    if keep_gradients and torch.is_grad_enabled():
        touched = [parameter.view(-1)[0] for parameter in block.parameters() if parameter.requires_grad]
        if touched:
            hidden_states = hidden_states + 0 * torch.stack(touched).sum()
    return hidden_states
