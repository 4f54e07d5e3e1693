"""Weight norms taken off a model and put on again, to the bit: torch's parametrized modules cannot be pickled."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class WeightNorm:
    """The weight norm of one module. name: of the module. dim: which is normalised. originals: its two parameters."""

    name: str
    dim: int
    originals: tuple[Tensor, Tensor]
    requires_grad: tuple[bool, bool]


def remove_weight_norms(model: nn.Module) -> list[WeightNorm]:
    """Makes plain weights of the weights with a norm, in place; other parametrizations stay."""
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
    """Undoes `remove_weight_norms`."""
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
    """The parametrization of a module's weight, where it is a weight norm and there is no other; else None."""
    found = getattr(module, "parametrizations", None)
    if not isinstance(found, nn.ModuleDict) or list(found) != ["weight"]:
        return None
    parametrization: Any = found["weight"]
    return parametrization if [type(one) for one in parametrization] == [parametrizations._WeightNorm] else None


def _make_plain(module: Any) -> None:
    """Not by torch's `remove_parametrizations`: it changes the class, which copies of a module share."""
    weight, module.__class__ = module.weight.detach(), type(module).__bases__[0]
    del module.parametrizations
    module.weight = nn.Parameter(weight)
    # torch's own, for checkpoints with old names of the norm; a function that pickle cannot name.
    for number, hook in list(module._load_state_dict_pre_hooks.items()):
        if "weight_norm" in getattr(hook, "__qualname__", getattr(hook.hook, "__qualname__", "")):
            del module._load_state_dict_pre_hooks[number]
