"""Remove weight norms from a model and restore them bit for bit: parametrized modules cannot be pickled."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class WeightNorm:
    """The weight norm of one module.

    Attributes:
        name: Name of the module.
        dim: The dimension that is normalized.
        originals: Its two parameters, norm and direction.
        requires_grad: Whether each of them is trained.
    """

    name: str
    dim: int
    originals: tuple[Tensor, Tensor]
    requires_grad: tuple[bool, bool]


def remove_weight_norms(model: nn.Module) -> list[WeightNorm]:
    """Replace weights with a weight norm by plain weights, in place, and return the norms.

    Other parametrizations are kept.
    """
    found = []
    for name, module in model.named_modules():
        parametrization = _weight_norm(module)
        if parametrization is not None:
            first, second = parametrization.original0, parametrization.original1
            originals = first.detach().clone(), second.detach().clone()
            requires_grad = first.requires_grad, second.requires_grad
            found.append(WeightNorm(name, parametrization[0].dim, originals, requires_grad))
    for norm in found:
        _make_plain(model.get_submodule(norm.name))
    return found


def restore_weight_norms(model: nn.Module, norms: list[WeightNorm]) -> None:
    """Undo `remove_weight_norms`, in place."""
    for norm in norms:
        module = model.get_submodule(norm.name)
        parametrization = _weight_norm(parametrizations.weight_norm(module, dim=norm.dim))
        module.train(module.training)
        parameters = (parametrization.original0, parametrization.original1)
        for parameter, original, requires_grad in zip(parameters, norm.originals, norm.requires_grad, strict=True):
            with torch.no_grad():
                parameter.copy_(original)
            parameter.requires_grad_(requires_grad)


def _weight_norm(module: Any) -> Any:
    """Return the parametrization of a module's weight if it is a weight norm and the only one, else None."""
    found = getattr(module, "parametrizations", None)
    if not isinstance(found, nn.ModuleDict) or list(found) != ["weight"]:
        return None
    parametrization: Any = found["weight"]
    return parametrization if [type(one) for one in parametrization] == [parametrizations._WeightNorm] else None


def _make_plain(module: Any) -> None:
    """Make a weight plain without `remove_parametrizations`, which changes the class that copies of a module share."""
    weight, module.__class__ = module.weight.detach(), type(module).__bases__[0]
    del module.parametrizations
    module.weight = nn.Parameter(weight)
    # torch adds this hook for checkpoints with the old names of the norm; pickle cannot store it.
    for number, hook in list(module._load_state_dict_pre_hooks.items()):
        if "weight_norm" in getattr(hook, "__qualname__", getattr(hook.hook, "__qualname__", "")):
            del module._load_state_dict_pre_hooks[number]
