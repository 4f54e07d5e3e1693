"""Whether a module computes what its class says and nothing besides, so that its parameters alone can be used.

Hooks, LoRA, quantisation, parametrizations and replaced forwards are only called when the module is called.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

GLOBAL_FORWARD_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
GLOBAL_BACKWARD_HOOKS = (torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks)


def is_plain(projection: nn.Module) -> bool:
    """Whether a projection is x Wᵀ + b and nothing else: no LoRA, no quantisation, no hook, no forward of its own."""
    return type(projection) is nn.Linear and has_plain_parameters(projection) and not is_observed(projection)


def is_observed(module: nn.Module) -> bool:
    """Whether a module has to be called: it or its class has hooks or a replaced forward, or all modules have hooks."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or any(GLOBAL_FORWARD_HOOKS)
        or any(GLOBAL_BACKWARD_HOOKS)
        or replaced_forward(type(module)) is not None
    )


def replaced_forward(cls: type[nn.Module]) -> str | None:
    """Return the module that the forward of a class, or of a base class, comes from if that is a foreign one.

    What counts is where its code is: `functools.wraps` copies the name of the module that it replaces.
    """
    for base in cls.__mro__:
        forward = vars(base).get("forward")
        if forward is not None and not is_known_code(forward):
            return _home(forward) or type(forward).__name__
    return None


def is_known_code(function: Any) -> bool:
    """Whether a function is torch's, transformers' or ours."""
    return _home(function).startswith(("torch.", "transformers.", "w2v_attn."))


def _home(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__globals__", {}).get("__name__", "")


def has_plain_parameters(module: nn.Module) -> bool:
    """Whether the parameters of a module are plain numbers: quantised and distributed ones are classes of their own."""
    return all(p is None or type(p) in (nn.Parameter, Tensor, torch.nn.Buffer) for p in module._parameters.values())
