"""Selection of layers: names, ranges, and weighted sums."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from w2v_attn.encoder.layers import layer_of_number, split_range
from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.recording_features import layer_order

ALL = "all"
SUM = "sum"


def select_layers(layers: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the requested layers of a recording, each once, in the order of computation.

    Args:
        layers: The layers that exist.
        wanted: Names; numbers of blocks, with 0 for `embed`; ranges with both ends, `layer_03-layer_09` or `3-9`; or
            `all`.

    Raises:
        FeatureSetError: a requested layer does not exist.
    """
    found: list[str] = []
    for name in wanted:
        first, last = (layer_of_number(end) for end in split_range(name))
        if name == ALL:
            found += layers
        else:
            _check(layers, dict.fromkeys((first, last)), name)
            found += [layer for layer in layers if layer_order(first) <= layer_order(layer) <= layer_order(last)]
    if not found:
        raise FeatureSetError(f"layers={','.join(wanted)} is empty: it has {', '.join(layers)}")
    return tuple(sorted(set(found), key=layer_order))


def _check(layers: Sequence[str], needed: Iterable[str], name: str) -> None:
    missing = [layer for layer in needed if layer not in layers]
    if missing:
        raise FeatureSetError(f"layers={name}: there is no {' and no '.join(missing)}, it has {', '.join(layers)}")


@dataclass(frozen=True)
class LayerSum:
    """A weighted sum of layers. weights: one for each layer, by name or by position; None for the mean."""

    weights: tuple[float, ...] | None
    layers: tuple[str, ...] | None = None

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of layers [frames, channels], in float32 at least.

        Raises:
            FeatureSetError: the layers are not those of the weights, or differ in shape.
        """
        names = tuple(features)
        if self.layers is not None and self.layers != names:
            missing = [name for name in self.layers if name not in features]
            raise FeatureSetError(
                f"the weights are of {', '.join(self.layers)}; "
                + (
                    f"it lacks {', '.join(missing)}: extract layers=all"
                    if missing
                    else f"layers are {', '.join(names)}"
                )
            )
        if self.weights is not None and len(self.weights) != len(names):
            raise FeatureSetError(f"there are {len(self.weights)} weights for {len(names)} layers, {', '.join(names)}")
        if len(shapes := {tuple(tensor.shape) for tensor in features.values()}) > 1:
            raise FeatureSetError(f"layers of the shapes {sorted(shapes)} cannot be summed: choose some with layers=")
        total: Tensor | None = None
        for weight, tensor in zip(self.by_layer(names).values(), features.values(), strict=True):
            part = weight * tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            total = part if total is None else total + part
        assert total is not None
        return total

    def by_layer(self, layers: Sequence[str]) -> dict[str, float]:
        """Return layer -> weight."""
        return dict(zip(layers, self.weights or (1 / len(layers),) * len(layers), strict=True))

    def input_layers(self, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the layers to sum, of the selected ones: for weights of a checkpoint, the layers that it names."""
        own = self.layers
        return tuple(layers) if own is None else tuple(layer for layer in layers if layer in own)


def parse_layer_weights(value: str | Sequence[float] | None) -> LayerSum | None:
    """Return the weighted sum for `layer_weights=`; None for no sum.

    Args:
        value: Weights, `mean`, or a fine-tuned checkpoint with learned weights.

    Raises:
        FeatureSetError: it is none of these, or the checkpoint has no layer weights.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return LayerSum(None) if value == "mean" else learned_sum(Path(os.path.expanduser(value)))
    try:
        return LayerSum(tuple(float(weight) for weight in value))
    except (TypeError, ValueError):
        raise FeatureSetError(
            f"layer_weights must be weights such as layer_weights=[0.2,0.8], mean, or a checkpoint, got {value}"
        ) from None


def learned_sum(checkpoint: Path) -> LayerSum:
    """Return the sum by the softmax of a checkpoint's learned `layer_weights`: the input of block 1, then each block.

    As in transformers, the last layer is the output of the last block, before any final LayerNorm.

    Raises:
        FeatureSetError: there is no such file, or it has no such weights.
    """
    path = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    try:
        with safe_open(path, "pt") as file:
            if "layer_weights" not in file.keys():  # noqa: SIM118 - it is not a dictionary
                raise FeatureSetError(f"{path} has no layer_weights: fine-tune with task.layers=weighted")
            weights = file.get_tensor("layer_weights").double().softmax(-1)
    except (SafetensorError, OSError) as error:
        raise FeatureSetError(
            f"layer_weights={checkpoint} is neither a checkpoint nor weights such as layer_weights=[0.2,0.8]: {error}"
        ) from error
    names = ("embed", *(f"layer_{number:02d}" for number in range(1, len(weights))))
    return LayerSum(tuple(weights.tolist()), names)
