"""What is made of the layers of a recording: some of them, summed, pooled, in another dtype; of any that are at hand.

layers → **choose → sum → pool → cast** → features, and what is said about them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from w2v_attn.feature_sets.arrays import DTYPES, dtype_name, is_finite
from w2v_attn.feature_sets.errors import FeatureSetError
from w2v_attn.feature_sets.pooling import POOLINGS, Span, pool, pool_spans
from w2v_attn.feature_sets.selection import ALL, SUM, parse_sum, select


class Making:
    """What is made of every recording. Without arguments: all that there is, as it is.

    dtype: of what is made; None: as it is. layers: see `selection.select`.
    sum: weights, `mean` or a checkpoint, see `selection.parse_sum`; the result is the layer `sum`. None: no sum.
    pool: `none`, `mean` or `statistics`, over the whole recording; with spans, id -> spans, over each of its own.
    key: what the dtype is called where it is asked for.

    Raises:
        FeatureSetError: one of them cannot be had.
    """

    def __init__(
        self,
        *,
        dtype: str | None = None,
        layers: Sequence[str] = (ALL,),
        sum: str | Sequence[float] | None = None,
        pool: str = "none",
        spans: Mapping[str, Sequence[Span]] | None = None,
        key: str = "dtype",
    ):
        if dtype is not None and dtype not in DTYPES:
            raise FeatureSetError(f"{key} must be one of {', '.join(DTYPES)}, got {dtype}")
        if pool not in POOLINGS:
            raise FeatureSetError(f"pool must be one of {', '.join(POOLINGS)}, got {pool}")
        if spans is not None and pool == "none":
            raise FeatureSetError("segments are what is pooled over: give pool=mean or pool=statistics")
        self.dtype, self.layers, self.pool, self.spans = dtype, tuple(layers), pool, spans
        self.sum = parse_sum(sum)
        self._key, self._sum = key, sum

    @property
    def whole(self) -> "Making":
        """The same without spans."""
        if self.spans is None:
            return self
        return Making(dtype=self.dtype, layers=self.layers, sum=self._sum, pool=self.pool, key=self._key)

    def chosen(self, layers: Sequence[str]) -> tuple[str, ...]:
        """The layers that are needed, of those that there are. Raises FeatureSetError where one is not there."""
        chosen = select(layers, self.layers)
        return chosen if self.sum is None else self.sum.chosen(chosen)

    def made(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """The names of what is made of the chosen layers."""
        return tuple(chosen) if self.sum is None else (SUM,)

    @property
    def dimensions(self) -> int:
        """Of a tensor that is made: 2 for frames, and for a vector for each span; 1 for a vector."""
        return 1 if self.pool != "none" and self.spans is None else 2

    def make(self, id: str, features: Mapping[str, Tensor], rate: Callable[[str], float]) -> dict[str, Tensor]:
        """Chosen layers [frames, channels] -> what is made of them, by name, contiguous.

        rate: layer -> frames a second; asked where there are spans.

        Raises:
            FeatureSetError: layers cannot be summed, there are no spans, or one or a value is beyond the end.
        """
        targets = {layer: DTYPES[self.dtype] if self.dtype else tensor.dtype for layer, tensor in features.items()}
        if self.spans is not None and id not in self.spans:
            raise FeatureSetError("has no segments")
        rates = {} if self.spans is None else {layer: rate(layer) for layer in features}
        if self.sum is not None:
            summed, last = self.sum(features), next(reversed(targets))  # which raises where there are none
            features, targets = {SUM: summed}, {SUM: targets[last]}
            rates = {SUM: rates[last]} if rates else {}
        if self.pool != "none":
            if self.spans is None:
                features = {layer: pool(tensor, self.pool) for layer, tensor in features.items()}
            else:
                spans = self.spans[id]
                features = {layer: pool_spans(x, spans, self.pool, rates[layer]) for layer, x in features.items()}
        return {layer: cast(tensor, targets[layer], layer, self._key) for layer, tensor in features.items()}

    def describe(self, id: str, metadata: Mapping[str, str], chosen: Sequence[str]) -> dict[str, str]:
        """What is said about what is made of the chosen layers. metadata: about the recording that has them."""
        said, made = dict(metadata), self.made(chosen)
        if self.sum is not None:
            said["sum"] = json.dumps(self.sum.described(chosen))
            if (rates := said.pop("frame_rates", None)) is not None:
                said["frame_rate"] = f"{json.loads(rates)[chosen[-1]]:g}"
        if self.pool != "none":
            said["pool"] = self.pool
            if self.spans is not None:
                said["spans"] = json.dumps(self.spans[id], ensure_ascii=False)
        if (layers := ",".join(made)) != said.get("layers"):
            said["layers"] = layers
        if self.dtype is not None:
            said["dtype"] = self.dtype
        return said

    def fingerprint(self, chosen: Sequence[str]) -> dict[str, str]:
        """What decides what is made, beside the chosen layers; empty where they are kept as they are."""
        said = {} if self.dtype is None else {self._key: self.dtype}
        if self.sum is not None:
            said["sum"] = json.dumps(self.sum.described(chosen))
        if self.pool != "none":
            said["pool"] = self.pool
        if self.spans is not None:
            said["segments"] = f"sha256 {hashlib.sha256(json.dumps(self.spans).encode()).hexdigest()}"
        return said


def cast(tensor: Tensor, dtype: torch.dtype, layer: str, key: str = "dtype") -> Tensor:
    """The tensor in another dtype. Raises FeatureSetError where a finite value has no finite one there."""
    made = tensor.to(dtype).contiguous()
    if made.dtype == tensor.dtype or is_finite(made):
        return made
    lost = tensor.isfinite() & ~made.isfinite()
    if count := int(lost.sum()):
        name = dtype_name(made)
        raise FeatureSetError(
            f"{layer}: {count:,} of {tensor.numel():,} values are beyond {name}, which ends at "
            f"{torch.finfo(dtype).max:g}; the largest is {tensor[lost].abs().max():g}: "
            + (f"{key}=bfloat16 or {key}=float32 holds them" if name == "float16" else f"{key}=float64 holds them")
        )
    return made
