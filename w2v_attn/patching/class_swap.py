"""Classes that are ours and Hugging Face's at once: what a module becomes when its computation is swapped in place."""

import sys

from torch import nn


def derived(ours: type, stock: type[nn.Module]) -> type[nn.Module]:
    """The class with our forward and everything else of stock's: made once, and kept where pickle looks for it."""
    home = sys.modules[ours.__module__]
    made = vars(home).get(stock.__name__)
    if made is None:
        namespace = {"__module__": ours.__module__, "__doc__": f"transformers' {stock.__name__}, computed by w2v_attn."}
        made = type(stock.__name__, (ours, stock), namespace)
        setattr(home, stock.__name__, made)
    return made


def become(module: nn.Module, ours: type) -> None:
    """The same module, computed by us; no effect on one that is already."""
    if not isinstance(module, ours):
        module.__class__ = derived(ours, type(module))  # type: ignore[assignment]


def stock_class(module: nn.Module, ours: type) -> type[nn.Module]:
    """Hugging Face's class of a module, whether it is computed by us now or not."""
    return type(module).__bases__[1] if isinstance(module, ours) else type(module)
