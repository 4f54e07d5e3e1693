"""The names of an encoder's layers, the same for every family and every version of transformers.

`embed` is the input of block 1, `layer_01` … `layer_NN` are the outputs of the blocks, before any final LayerNorm, and
`final` is what the model returns as `last_hidden_state`. A number is short for the block of that number: 12 is
`layer_12`, 0 is `embed`, and -1 is the last block.
"""

import difflib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from w2v_attn.checkpoints.encoder_parts import encoder_parts


def layer_names(num_layers: int) -> tuple[str, ...]:
    """Return all layer names of an encoder with this many blocks, in the order of computation."""
    return ("embed", *(f"layer_{n:02d}" for n in range(1, num_layers + 1)), "final")


def split_range(layer: str | int) -> tuple[str, str]:
    """Return the first and the last layer of a range, such as `layer_03-layer_09` or `3-9`; of one layer, it twice."""
    found = re.fullmatch(r"(-?[^-]+)-(-?[^-]+)", str(layer))
    return (found[1], found[2]) if found else (str(layer), str(layer))


def layer_of_number(name: str, num_layers: int | None = None) -> str:
    """Return the name of the layer that a number stands for: `layer_12` of 12, `embed` of 0; other names as they are.

    Args:
        name: A name or a number. Negative numbers count from the last block, which is -1.
        num_layers: Number of blocks; None: unknown, and negative numbers are left as they are.

    Raises:
        ValueError: the encoder has no block of this number.
    """
    if not re.fullmatch(r"[-+]?\d+", name):
        return name
    number = int(name)
    if num_layers is not None:
        if not -num_layers <= number <= num_layers:
            raise ValueError(
                f"there is no layer {name}: this encoder has {num_layers} blocks, so a number is 0 (embed) to "
                f"{num_layers}, or -1 (the last block) to {-num_layers}"
            )
        number += num_layers + 1 if number < 0 else 0
    if number < 0:
        return name
    return "embed" if number == 0 else f"layer_{number:02d}"


def check_layers(layers: str | int | Sequence[str | int], num_layers: int) -> tuple[str, ...]:
    """Return the requested layers, each once, in the order of computation.

    Args:
        layers: Names; numbers of blocks, with 0 for `embed` and -1 for the last block; ranges with both ends, such as
            `layer_03-layer_09` or `3-9`; or `all`.
        num_layers: Number of blocks of the encoder.

    Raises:
        ValueError: a name that this encoder does not have.
    """
    known = layer_names(num_layers)
    if isinstance(layers, str | int):
        layers = (layers,)
    if not layers:
        raise ValueError(f"layers must name at least one of {known[0]}, {known[1]} … {known[-2]}, {known[-1]}")
    if "all" in layers:
        return known
    ends = [tuple(layer_of_number(end, num_layers) for end in split_range(name)) for name in layers]
    for name in (end for pair in ends for end in pair):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"there is no layer {name}: this encoder has {known[0]}, {known[1]} … {known[-2]}, {known[-1]}{hint}"
            )
    places = [(known.index(pair[0]), known.index(pair[-1])) for pair in ends]
    for name, (first, last) in zip(layers, places, strict=True):
        if first > last:
            raise ValueError(f"layers={name} is empty: the lower layer comes first")
    return tuple(name for place, name in enumerate(known) if any(first <= place <= last for first, last in places))


def highest_block(layers: Sequence[str], num_layers: int) -> int:
    """Return how many blocks must run for these layers: the blocks above are not needed."""
    return max(num_layers if name == "final" else 0 if name == "embed" else int(name[-2:]) for name in layers)


@contextmanager
def record_layers(model: Any, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the requested layers, [B, T, C], in the yielded dictionary while the base model runs a forward.

    `final` is not recorded: it is what the model returns. Hooks on the blocks do not depend on `output_hidden_states`,
    whose last entry changed its meaning between versions of transformers. One block may be used at several positions.
    Calls of the same model in other threads are not recorded.

    Raises:
        ValueError: `embed` of an encoder without blocks.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    names: dict[Any, list[str]] = {}
    for number, block in enumerate(encoder_parts(model).blocks, 1):
        names.setdefault(block, []).append(f"layer_{number:02d}")

    owner = threading.get_ident()

    def keep_input(_: object, inputs: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == owner:
            found.setdefault("embed", inputs[0])

    def keep_output(names: Iterator[str]) -> Any:
        def hook(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            if threading.get_ident() != owner:
                return
            name = next(names)
            if name in layers:
                found[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    if "embed" in layers:
        if not names:
            raise ValueError("embed is the input of block 1, and this encoder has no blocks: use layers=final")
        hooks.append(next(iter(names)).register_forward_pre_hook(keep_input))
    for block, places in names.items():
        hooks.append(block.register_forward_hook(keep_output(iter(places))))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
