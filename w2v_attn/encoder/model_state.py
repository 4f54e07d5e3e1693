"""Detection of changes to a model: its structure and the checksum of its weights.

The version counters of torch are not enough: fused optimizers, `p.data`, numpy, dlpack and flat views of all parameters
change weights without incrementing them. So all contents are hashed at every call, in 8 ms for a base model on two
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
# Words of 8 bytes that are summed at once on devices other than CPUs: 32 MB.
WORDS = 1 << 22

# Attributes of modules that are compared as values; all others by their identity.
VALUES = (int, float, str, bool)
# Extraction always runs in evaluation mode, whatever the mode of a module is.
IGNORED = frozenset({"training"})


class ModelStructure:
    """The modules of a model with their classes, attributes, hooks and tensors, but not the contents of tensors.

    It keeps references to what it compares with, so that no new object can reuse the `id` of a deleted one.
    """

    def __init__(self, model: nn.Module):
        self._modules = [_ModuleState(module) for module in model.modules()]
        self._forwards = {cls: _forwards(cls) for cls in {type(module) for module in model.modules()}}
        self._global_hooks = _global_hooks()
        self._attention = _attention_implementation(model)

    def matches(self, model: nn.Module) -> bool:
        """Return whether a model has this structure: the same modules with the same attributes, in the same order."""
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


class _ModuleState:
    """The state of one module, for the detection of changes."""

    def __init__(self, module: nn.Module):
        self._module, self._class = module, type(module)
        attributes = {name: value for name, value in vars(module).items() if name not in IGNORED}
        self._count = len(attributes)
        self._attributes = list(attributes.items())
        # Parameters, buffers, children and hooks are in dictionaries that remain the same objects when their contents
        # change.
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
    """Return all tensors of a model: parameters, buffers, and plain attributes of modules."""
    found = [*model.parameters(), *model.buffers()]
    return found + [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def checksum(tensors: Iterable[Tensor], *, shared: Iterable[Tensor] = ()) -> tuple[Any, ...]:
    """Return a value that changes whenever one of the tensors is written by any means, moved, or replaced.

    Args:
        tensors: The tensors.
        shared: Those among them that were not copied, so that a write is seen without a new preparation: they count as
            moved or replaced only.
    """
    tensors = list(tensors)
    places = [(t.data_ptr(), t.dtype, t.device, t.shape, t.stride()) for t in tensors]
    unread = {id(tensor) for tensor in shared}
    tensors = [tensor.detach() for tensor in tensors if id(tensor) not in unread]
    on_cpu = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    others = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    return *places, *_hashes(on_cpu), *_sums(others)


def _hashes(tensors: Sequence[Tensor]) -> list[bytes]:
    """Return the hashes of CPU tensors, in groups of similar size that are read in parallel."""
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
    """Return sums of all 8-byte words, each times a random odd number of its position, modulo 2⁶⁴; chunked.

    Different contents have the same sum with a probability of about 2⁻⁶⁰. One launch sums dozens of tensors.
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
    """Return random odd numbers, int64 [WORDS]."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.empty(WORDS, dtype=torch.int64, device="cpu").random_(-(1 << 63), None, generator=generator)
    return (drawn | 1).to(device)


def _words(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor as int64, padded with zeros to a whole number of words."""
    found = _bytes(tensor)
    missing = -len(found) % 8
    if missing:
        found = torch.cat((found, found.new_zeros(missing)))
    elif found.storage_offset() % 8 or found.data_ptr() % 8:
        found = found.clone()
    return found.view(torch.int64)


def _bytes(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor as uint8."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _forwards(cls: type[nn.Module]) -> list[Any]:
    """Return the `forward` of a class and of its base classes."""
    return [vars(base).get("forward") for base in cls.__mro__]


def _attention_implementation(model: Any) -> tuple[str | None, Any]:
    """Return the attention implementation that a config names, and the function that transformers registered for it."""
    name = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return name, ALL_ATTENTION_FUNCTIONS.get(name)


def _global_hooks() -> list[dict[int, Any]]:
    return [dict(hooks) for hooks in plain.GLOBAL_FORWARD_HOOKS]


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="checksum")


# A forked child does not have its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)
