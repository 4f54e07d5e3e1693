"""What a model computes with at one moment, so that a later change of it is noticed: its structure and its weights.

Version counters of torch do not do: fused optimizers, `p.data`, numpy, dlpack and flat views of all parameters change
weights and leave no trace in them. So the contents are hashed, all of them, at every call: 8 ms for a base model on two
cores.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from xxhash import xxh3_128

from w2v_attn.attention import plain

# Reading memory needs few cores.
MAX_THREADS = 4
# Words of 8 bytes that are summed up at once on other devices than CPUs: 32 MB.
WORDS = 1 << 22

# Attributes of modules that are compared as values; all others by their identity.
VALUES = (int, float, str, bool)
# Extraction always runs in evaluation mode, whatever the mode of a module is.
IGNORED = frozenset({"training"})


class Structure:
    """The modules of a model, their classes, attributes, hooks and tensors, as they are now; not what is in tensors.

    It holds what it compares with, so that nothing new can take the identity of something that is gone.
    """

    def __init__(self, model: nn.Module):
        self._modules = [_SeenModule(module) for module in model.modules()]
        self._forwards = {cls: _forwards(cls) for cls in {type(module) for module in model.modules()}}
        self._global_hooks = _global_hooks()
        self._attention = _attention_implementation(model)

    def is_that_of(self, model: nn.Module) -> bool:
        """Whether a model has this structure: the same modules with the same attributes, in the same order."""
        seen = iter(self._modules)
        for module in model.modules():
            before = next(seen, None)
            if before is None or not before.is_unchanged(module):
                return False
        if next(seen, None) is not None or self._global_hooks != _global_hooks():
            return False
        if any(_forwards(cls) != forwards for cls, forwards in self._forwards.items()):
            return False
        return self._attention == _attention_implementation(model)


class _SeenModule:
    """One module: what a change of it would change."""

    def __init__(self, module: nn.Module):
        self._module, self._class = module, type(module)
        attributes = {name: value for name, value in vars(module).items() if name not in IGNORED}
        self._count = len(attributes)
        self._attributes = list(attributes.items())
        # Parameters, buffers, children and hooks are in dictionaries, which stay the same when what they hold changes.
        self._items = [(value, list(value.items())) for value in attributes.values() if isinstance(value, dict)]

    def is_unchanged(self, module: nn.Module) -> bool:
        if module is not self._module or type(module) is not self._class:
            return False
        attributes = vars(module)
        if len(attributes) - sum(name in attributes for name in IGNORED) != self._count:
            return False
        for name, value in self._attributes:
            found = attributes.get(name, IGNORED)
            if found is not value and not (type(found) is type(value) and isinstance(value, VALUES) and found == value):
                return False
        for now, items in self._items:
            if len(now) != len(items) or any(now.get(name, IGNORED) is not value for name, value in items):
                return False
        return True


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Return all tensors of a model: its parameters, its buffers, and those that are plain attributes of a module."""
    found = [*model.parameters(), *model.buffers()]
    return found + [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def checksum(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """A value that changes when one of the tensors is written, however that is done, moved, or replaced."""
    tensors = [tensor.detach() for tensor in tensors]
    places = [(t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in tensors]
    on_cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    others = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    return *places, *_hashes(on_cpu), *_sums(others)


def _hashes(tensors: Sequence[Tensor]) -> list[bytes]:
    """Hashes of tensors of the CPU, in as many groups of like size as there are threads to read them."""
    threads = max(1, min(torch.get_num_threads(), MAX_THREADS, len(tensors)))
    groups: list[list[Tensor]] = [[] for _ in range(threads)]
    sizes = [0] * threads
    for tensor in sorted(tensors, key=lambda tensor: -tensor.nbytes):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(tensor)
        sizes[smallest] += tensor.nbytes
    return [_hash(groups[0])] if threads == 1 else list(_threads(threads).map(_hash, groups))


def _hash(tensors: Iterable[Tensor]) -> bytes:
    hashed = xxh3_128()
    for tensor in tensors:
        memory: Any = _bytes(tensor).numpy()
        hashed.update(memory)
    return hashed.digest()


def _sums(tensors: Sequence[Tensor]) -> list[int]:
    """Of all words of 8 bytes, in pieces, the sum of each times an odd number drawn for its place, modulo 2⁶⁴.

    Two contents have the same sum by chance only, once in about 2⁶⁰ times. One launch each for some dozens of tensors.
    """
    found, batch, size = [], list[Tensor](), 0
    for tensor in tensors:
        for part in _words(tensor).split(WORDS):
            if size + len(part) > WORDS:
                found.append(_sum(batch))
                batch, size = [], 0
            batch.append(part)
            size += len(part)
    if batch:
        found.append(_sum(batch))
    return torch.stack(found).tolist() if found else []


def _sum(words: Sequence[Tensor]) -> Tensor:
    joined = torch.cat(list(words))
    return joined.mul_(_multipliers(joined.device)[: len(joined)]).sum()


@cache
def _multipliers(device: torch.device) -> Tensor:
    """int64 [WORDS]: odd numbers."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.empty(WORDS, dtype=torch.int64, device="cpu").random_(-(1 << 63), None, generator=generator)
    return (drawn | 1).to(device)


def _words(tensor: Tensor) -> Tensor:
    """The memory of a tensor as int64, zeros behind it where it is no whole number of words."""
    found = _bytes(tensor)
    missing = -len(found) % 8
    if missing:
        found = torch.cat((found, found.new_zeros(missing)))
    elif found.storage_offset() % 8 or found.data_ptr() % 8:
        found = found.clone()
    return found.view(torch.int64)


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a tensor as uint8."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _forwards(cls: type[nn.Module]) -> list[Any]:
    """The forwards of a class and of the classes that it is made of."""
    return [vars(base).get("forward") for base in cls.__mro__]


def _attention_implementation(model: Any) -> tuple[str | None, Any]:
    """The implementation of attention that a config names, and the function that transformers has under that name."""
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return name, ALL_ATTENTION_FUNCTIONS.get(name)


def _global_hooks() -> list[dict[int, Any]]:
    return [dict(hooks) for hooks in plain.GLOBAL_FORWARD_HOOKS]


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="checksum")


# The threads of a process are not those of its child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)
