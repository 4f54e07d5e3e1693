"""Whether a module computes what its class says and nothing besides, so that its parameters alone can be used.

Hooks, LoRA, quantisation, parametrizations and replaced forwards are only called when the module is called.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

GLOBAL_FORWARD_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
GLOBAL_BACKWARD_HOOKS = (torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks)


def is_plain(projection: nn.Module) -> bool:
    """Whether a projection is x Wᵀ + b and nothing else: no LoRA, no quantisation, no hook, no forward of its own."""
    return type(projection) is nn.Linear and has_plain_parameters(projection) and not is_observed(projection)


def is_observed(module: nn.Module) -> bool:
    """Whether a module has to be called: it has hooks or a forward of its own, or there are hooks for all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or any(GLOBAL_FORWARD_HOOKS)
        or any(GLOBAL_BACKWARD_HOOKS)
    )


def has_plain_parameters(module: nn.Module) -> bool:
    """Whether the parameters of a module are plain numbers: quantised and distributed ones are classes of their own."""
    return all(p is None or type(p) in (nn.Parameter, Tensor, torch.nn.Buffer) for p in module._parameters.values())
