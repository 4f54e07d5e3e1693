"""Checks whether a module computes exactly what its class defines, so that its parameters can be used directly.

Hooks, LoRA, quantisation, parametrizations and replaced forwards take effect only if the module is called.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

GLOBAL_FORWARD_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
GLOBAL_BACKWARD_HOOKS = (torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks)


def is_plain_linear(projection: nn.Module) -> bool:
    """Return whether a projection is exactly x Wᵀ + b: no LoRA, no quantisation, no hook, no replaced forward."""
    return type(projection) is nn.Linear and has_plain_parameters(projection) and not must_be_called(projection)


def must_be_called(module: nn.Module) -> bool:
    """Return whether a module has hooks, global hooks included, or a replaced forward: it must then be called."""
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
    """Return the module that defines the forward of a class or of its bases, if it is third-party code; else None.

    This is the module of the code itself: `functools.wraps` copies the `__module__` of the function that it replaces.
    """
    for base in cls.__mro__:
        forward = vars(base).get("forward")
        if forward is not None and not is_known_code(forward):
            return _defining_module(forward) or type(forward).__name__
    return None


def is_known_code(function: Any) -> bool:
    """Return whether a function is defined in torch, transformers or this package."""
    return _defining_module(function).startswith(("torch.", "transformers.", "w2v_attn."))


def _defining_module(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__globals__", {}).get("__name__", "")


def has_plain_parameters(module: nn.Module) -> bool:
    """Return whether the parameters of a module are ordinary tensors, neither quantised nor distributed."""
    return all(p is None or type(p) in (nn.Parameter, Tensor, torch.nn.Buffer) for p in module._parameters.values())
