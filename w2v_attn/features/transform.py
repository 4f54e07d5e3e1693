"""What is made of the layers of a recording: select, sum, pool, and cast to another dtype.

layers → **select → sum → pool → cast** → features and their metadata.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from w2v_attn.dtypes import DTYPES, dtype_name
from w2v_attn.features.arrays import is_finite
from w2v_attn.features.feature_errors import FeatureSetError, RecordingFeaturesError
from w2v_attn.features.pooling import POOLINGS, Span, pool, pool_spans
from w2v_attn.features.selection import ALL, SUM, parse_layer_weights, select_layers

# Metadata key: how many values became 0 when the features were stored or converted; absent if none did.
UNDERFLOWED = "underflowed"
# Seconds by which a span may end after its recording: annotations round.
SPAN_SLACK = 0.1
# Zeros are counted in chunks of this many values: half a megabyte in half precision stays in a core's cache.
CHUNK_VALUES = 1 << 18


@dataclass(frozen=True)
class Transformed:
    """The features made of a recording. features: by layer name, contiguous. underflowed: values that became 0."""

    features: dict[str, Tensor]
    underflowed: int = 0


class FeatureTransform:
    """What is made of every recording. Without arguments: all layers, unchanged.

    Args:
        output_dtype: Dtype of the result; None keeps it.
        layers: See `selection.select_layers`.
        layer_weights: Weights, `mean` or a checkpoint, see `selection.parse_layer_weights`; the weighted sum is the
            layer `sum`. None: no sum.
        pooling: `none`, `mean` or `statistics`, over the whole recording, or over each of its spans.
        spans: Id -> spans.

    Raises:
        FeatureSetError: an argument is invalid.
    """

    def __init__(
        self,
        *,
        output_dtype: str | None = None,
        layers: Sequence[str] = (ALL,),
        layer_weights: str | Sequence[float] | None = None,
        pooling: str = "none",
        spans: Mapping[str, Sequence[Span]] | None = None,
    ):
        if output_dtype is not None and output_dtype not in DTYPES:
            raise FeatureSetError(f"output_dtype must be one of {', '.join(DTYPES)}, got {output_dtype}")
        if pooling not in POOLINGS:
            raise FeatureSetError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling}")
        if spans is not None and pooling == "none":
            raise FeatureSetError("segments need pooling: give pooling=mean or pooling=statistics")
        self.output_dtype, self.layers, self.pooling, self.spans = output_dtype, tuple(layers), pooling, spans
        self.weighted_sum = parse_layer_weights(layer_weights)
        self._layer_weights = layer_weights

    @property
    def without_spans(self) -> "FeatureTransform":
        """This transform without spans."""
        if self.spans is None:
            return self
        return FeatureTransform(
            output_dtype=self.output_dtype, layers=self.layers, layer_weights=self._layer_weights, pooling=self.pooling
        )

    def input_layers(self, layers: Sequence[str]) -> tuple[str, ...]:
        """Return the layers that are needed, of the existing ones. Raises FeatureSetError if one does not exist."""
        chosen = select_layers(layers, self.layers)
        return chosen if self.weighted_sum is None else self.weighted_sum.input_layers(chosen)

    def output_layers(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the features that are made of these layers."""
        return tuple(chosen) if self.weighted_sum is None else (SUM,)

    @property
    def ndim(self) -> int:
        """Dimensions of a result: 2 for frames, and for one vector per span; 1 for a vector."""
        return 1 if self.pooling != "none" and self.spans is None else 2

    def apply(self, id: str, features: Mapping[str, Tensor], rate: Callable[[str], float]) -> Transformed:
        """Return what is made of the input layers [frames, channels] of a recording.

        Args:
            id: The recording.
            features: Its input layers.
            rate: Layer -> frames per second; called only with spans.

        Raises:
            FeatureSetError: the layers cannot be summed, the recording has no spans, a span begins after its end, or a
                value is beyond the range of the output dtype.
        """
        targets = {
            layer: DTYPES[self.output_dtype] if self.output_dtype else tensor.dtype
            for layer, tensor in features.items()
        }
        if self.spans is not None and id not in self.spans:
            raise RecordingFeaturesError("has no segments", kind="no_segments")
        rates = {} if self.spans is None else {layer: rate(layer) for layer in features}
        if self.weighted_sum is not None:
            summed, last = self.weighted_sum(features), next(reversed(targets))  # which raises where there are none
            features, targets = {SUM: summed}, {SUM: targets[last]}
            rates = {SUM: rates[last]} if rates else {}
        if self.pooling != "none":
            if self.spans is None:
                features = {layer: pool(tensor, self.pooling) for layer, tensor in features.items()}
            else:
                spans = self.spans[id]
                features = {layer: pool_spans(x, spans, self.pooling, rates[layer]) for layer, x in features.items()}
        made = {layer: cast(tensor, targets[layer], layer) for layer, tensor in features.items()}
        return Transformed(made, sum(count_underflow(tensor, made[layer]) for layer, tensor in features.items()))

    def span_flags(self, id: str, seconds: float) -> tuple[str, ...]:
        """Return warnings about spans that end after their recording; nothing where the recording has no spans.

        Args:
            id: The recording.
            seconds: Its duration.
        """
        spans = () if self.spans is None else self.spans.get(id, ())
        beyond = [span for span in spans if span.end > seconds + SPAN_SLACK]
        if not beyond:
            return ()
        latest = max(span.end for span in beyond)
        return (f"segments beyond the end ({len(beyond)} of {len(spans)}: up to {latest:g} s of {seconds:.2f} s)",)

    def metadata(
        self, id: str, metadata: Mapping[str, str], chosen: Sequence[str], underflowed: int = 0
    ) -> dict[str, str]:
        """Return the metadata of what is made of these layers.

        Args:
            id: The recording.
            metadata: Metadata of its layers.
            chosen: The input layers.
            underflowed: See `Transformed`; added to the count of an earlier conversion.
        """
        described, made = dict(metadata), self.output_layers(chosen)
        if self.weighted_sum is not None:
            described["layer_weights"] = json.dumps(self.weighted_sum.by_layer(chosen))
            if (rates := described.pop("frame_rates", None)) is not None:
                described["frame_rate"] = f"{json.loads(rates)[chosen[-1]]:g}"
        if self.pooling != "none":
            described["pooling"] = self.pooling
            if self.spans is not None:
                described["spans"] = json.dumps(self.spans[id], ensure_ascii=False)
        if (layers := ",".join(made)) != described.get("layers"):
            described["layers"] = layers
        if self.output_dtype is not None:
            described["output_dtype"] = self.output_dtype
        if underflowed:
            described[UNDERFLOWED] = str(underflowed + underflow_of(metadata))
        return described

    def fingerprint(self, chosen: Sequence[str]) -> dict[str, str]:
        """Return what determines the result besides the input layers; empty if they are kept unchanged."""
        fingerprint = {} if self.output_dtype is None else {"output_dtype": self.output_dtype}
        if self.weighted_sum is not None:
            fingerprint["layer_weights"] = json.dumps(self.weighted_sum.by_layer(chosen))
        if self.pooling != "none":
            fingerprint["pooling"] = self.pooling
        if self.spans is not None:
            fingerprint["segments"] = f"sha256 {hashlib.sha256(json.dumps(self.spans).encode()).hexdigest()}"
        return fingerprint


def cast(tensor: Tensor, dtype: torch.dtype, layer: str) -> Tensor:
    """Return a tensor in another dtype. Raises FeatureSetError if a finite value would become infinite."""
    made = tensor.to(dtype).contiguous()
    if made.dtype == tensor.dtype or is_finite(made):
        return made
    lost = tensor.isfinite() & ~made.isfinite()
    if count := int(lost.sum()):
        name = dtype_name(made.dtype)
        wider = "output_dtype=bfloat16 or output_dtype=float32" if name == "float16" else "output_dtype=float64"
        raise RecordingFeaturesError(
            f"{layer}: {count:,} of {tensor.numel():,} values are beyond {name}, which ends at "
            f"{torch.finfo(dtype).max:g}; the largest is {tensor[lost].abs().max():g}: "
            f"{wider} holds them",
            kind="out_of_range",
        )
    return made


def count_underflow(tensor: Tensor, made: Tensor) -> int:
    """Return how many values are 0 in `made`, which is `tensor` in another dtype, but not in `tensor`."""
    if torch.promote_types(tensor.dtype, made.dtype) == made.dtype:  # the dtype holds every value
        return 0
    # Zeros are rare, so only chunks with zeros are counted; without a mask, which is slow in half precision.
    blocks = zip(tensor.flatten().split(CHUNK_VALUES), made.flatten().split(CHUNK_VALUES), strict=True)
    return sum(int(x.count_nonzero() - y.count_nonzero()) for x, y in blocks if len(y) and _may_have_zeros(y))


def _may_have_zeros(values: Tensor) -> bool:
    """Return whether a half-precision value is 0, from its bits; True for other dtypes."""
    if values.element_size() != 2:
        return True
    bits = values.view(torch.int16)  # +0 is 0, and −0 is the smallest integer
    return int(bits.count_nonzero()) < len(bits) or int(bits.amin()) == torch.iinfo(torch.int16).min


def underflow_of(metadata: Mapping[str, str]) -> int:
    """Return how many values of a recording became 0 when it was stored."""
    return int(metadata.get(UNDERFLOWED, 0))


def describe_underflow(values: int, recordings: int, dtype: str) -> str:
    """Return a sentence on values that became 0, and what to do."""
    wider = "float64" if dtype == "float32" else "float32"
    return (
        f"{values:,} {'value' if values == 1 else 'values'} in {recordings:,} "
        f"{'recording' if recordings == 1 else 'recordings'} became 0: below {dtype}'s range, "
        f"output_dtype={wider} keeps them"
    )
