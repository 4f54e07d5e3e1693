"""Conversion of features: select, sum and pool layers, change the dtype, and write another layout."""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from w2v_attn.dtypes import dtype_name
from w2v_attn.features.arrays import check_dtype
from w2v_attn.features.conversion_folder import acquire_conversion_folder, check_conversion_folder, note_failure
from w2v_attn.features.feature_errors import DamagedError, FeatureSetError, RecordingFeaturesError
from w2v_attn.features.formats.interface import FeatureWriter
from w2v_attn.features.formats.layouts import get_layout
from w2v_attn.features.open_features import FeatureSet
from w2v_attn.features.recording_features import RecordingFeatures
from w2v_attn.features.segments import read_segments
from w2v_attn.features.selection import ALL
from w2v_attn.features.transform import FeatureTransform, Transformed


class ConversionError(Exception):
    """The conversion cannot continue: the disk is full, or gone."""


@dataclass(frozen=True)
class ConversionRequest:
    """What a conversion makes of features.

    Attributes:
        layout: One of `formats.layouts.LAYOUTS`.
        output_dtype, layers, layer_weights, pooling: See `transform.FeatureTransform`.
        segments: See `segments.read_segments`.
    """

    layout: str
    output_dtype: str | None = None
    layers: tuple[str, ...] = (ALL,)
    layer_weights: str | tuple[float, ...] | None = None
    pooling: str = "none"
    segments: Path | None = None


@dataclass(frozen=True)
class ConversionOutcome:
    """The outcome of a recording.

    Attributes:
        id: The recording.
        reason: Why it is not in the output; None if it is.
        bytes: Bytes of its tensors.
        underflowed: Values that became 0 in the dtype of the output.
        flags: Warnings about what was asked of it, such as spans beyond its end.
    """

    id: str
    reason: str | None
    bytes: int = 0
    underflowed: int = 0
    flags: tuple[str, ...] = ()


class Conversion:
    """A conversion whose request has been checked.

    Attributes:
        ids: The recordings of the output, in the order of the features.

    Raises:
        FeatureSetError: the request is invalid, or the output holds something else. Nothing is written.
    """

    def __init__(self, features: FeatureSet, output: Path, request: ConversionRequest):
        self._features, self._output, self._request = features, output, request
        self._writer = get_layout(request.layout).writer
        if request.segments is not None and request.pooling == "none":
            raise FeatureSetError("segments need pooling: give pooling=mean or pooling=statistics")
        spans = None if request.segments is None else read_segments(request.segments, features)
        self._transform = FeatureTransform(
            output_dtype=request.output_dtype,
            layers=request.layers,
            layer_weights=request.layer_weights,
            pooling=request.pooling,
            spans=spans,
        )
        self.ids = [id for id in features if spans is None or id in spans]
        self._check_first()
        self._record = self._describe()
        check_conversion_folder(output, features.folder, self._record)

    def run(self) -> Generator[ConversionOutcome, None, None]:
        """Convert, and yield the outcome of each recording. If closed early, complete files stay.

        A recording that cannot be read or converted is recorded in `failures.jsonl` in the output with its reason, and
        the conversion continues. Without layers, layer_weights, pooling and output_dtype every bit and every name is
        preserved.

        Raises:
            ConversionError: the output cannot be written.
            FeatureSetError: another process writes to it.
        """
        written, underflow = 0, {"values": 0, "recordings": 0}
        try:
            with acquire_conversion_folder(self._output, self._record) as finished:
                with self._writer(self._output) as writer:
                    for id in self.ids:
                        try:
                            made, metadata, flags = self._make(self._features[id])
                            _write(writer, id, made.features, metadata)
                        except FeatureSetError as error:
                            note_failure(self._output, id, error)
                            yield ConversionOutcome(id, str(error))
                        else:
                            written += 1
                            underflow["values"] += made.underflowed
                            underflow["recordings"] += made.underflowed > 0
                            size = sum(tensor.nbytes for tensor in made.features.values())
                            yield ConversionOutcome(id, None, size, made.underflowed, flags)
                finished({"written": written, "underflow": underflow})
        except OSError as error:
            raise ConversionError(f"cannot write to {self._output}: {error.strerror or error}") from error

    def _check_first(self) -> None:
        """Try the request on the first readable recording: an error in the request concerns all of them."""
        for id in self.ids:
            try:
                recording = self._features[id]
                frames = {layer: recording[layer] for layer in self._transform.input_layers(recording.layers)}
            except DamagedError:
                continue
            if self._transform.weighted_sum is not None:
                self._transform.weighted_sum(frames)
            for tensor in frames.values():
                check_dtype(
                    self._request.output_dtype or dtype_name(tensor.dtype), self._request.layout, self._writer.dtypes
                )
            return

    def _describe(self) -> dict[str, object]:
        """Return the record of this conversion; a folder holds one conversion only."""
        request = {name: value for name, value in dataclasses.asdict(self._request).items() if value is not None}
        source = {"features": os.fspath(self._features.folder.resolve()), "recordings": len(self.ids)}
        names = hashlib.sha256("\n".join(self.ids).encode(errors="surrogateescape")).hexdigest()
        return json.loads(json.dumps({**source, "sha256_of_ids": names, **request}, default=os.fspath))

    def _make(self, recording: RecordingFeatures) -> tuple[Transformed, dict[str, str], tuple[str, ...]]:
        """Return features and metadata as they are written, and warnings about the request."""
        transform, metadata = self._transform, recording.metadata
        chosen = transform.input_layers(recording.layers)
        if transform.pooling != "none" and "pooling" in metadata:
            raise FeatureSetError(f"is already pooled (pooling={metadata['pooling']}): it has no frames")
        made = transform.apply(recording.id, {layer: recording[layer] for layer in chosen}, recording.frame_rate)
        described = transform.metadata(recording.id, metadata, chosen, made.underflowed)
        flags = ()
        samples, rate = metadata.get("samples"), metadata.get("sample_rate")
        if transform.spans is not None and samples is not None and rate is not None:
            flags = transform.span_flags(recording.id, int(samples) / int(rate))
        if flags:
            described["flags"] = "; ".join(filter(None, [metadata.get("flags", ""), *flags]))
        return made, described, flags


def _write(writer: FeatureWriter, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    try:
        writer.write(id, features, metadata)
    except OSError as error:
        if (
            error.errno != errno.ENAMETOOLONG
        ):  # a name that is too long concerns one recording; other errors concern all
            raise
        raise RecordingFeaturesError(f"cannot be written: {error.strerror}", kind="not_written") from error
