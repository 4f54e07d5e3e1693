"""The conversion: recordings of one layout -> selected, summed, pooled, in another dtype -> another layout."""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2v_attn.feature_sets.arrays import DTYPES, check_holds, dtype_name
from w2v_attn.feature_sets.destination import check_destination, destination, note_failure
from w2v_attn.feature_sets.errors import DamagedError, FeatureSetError
from w2v_attn.feature_sets.layouts.choice import layout_of
from w2v_attn.feature_sets.layouts.layout import Writer
from w2v_attn.feature_sets.pooling import POOLINGS, pool, pool_spans
from w2v_attn.feature_sets.reading import FeatureSet
from w2v_attn.feature_sets.recording import Recording
from w2v_attn.feature_sets.segments import read_segments
from w2v_attn.feature_sets.selection import ALL, SUM, parse_sum, select


class ConversionError(Exception):
    """The conversion cannot go on: the disk is full, or gone."""


@dataclass(frozen=True)
class Request:
    """What is to be made of features.

    layout: see `layouts.choice.LAYOUTS`. dtype: None: as it is. layers: see `selection.select`.
    sum: weights, `mean` or a checkpoint, see `selection.parse_sum`; the result is the layer `sum`. None: no sum.
    pool: `none`, `mean` or `statistics`, over the whole recording, or over each of its spans where there are segments.
    """

    layout: str
    dtype: str | None = None
    layers: tuple[str, ...] = (ALL,)
    sum: str | tuple[float, ...] | None = None
    pool: str = "none"
    segments: Path | None = None


@dataclass(frozen=True)
class Converted:
    """What became of a recording. reason: why it is not in the output; None: it is. bytes: of its tensors."""

    id: str
    reason: str | None
    bytes: int = 0


class Conversion:
    """A request that is found to be possible. ids: what it makes, in the order of the features.

    Raises:
        FeatureSetError: the request is wrong, or the output holds something else. Nothing is written.
    """

    def __init__(self, features: FeatureSet, output: Path, request: Request):
        self._features, self._output, self._request = features, output, request
        self._writer = layout_of(request.layout).writer
        if request.dtype is not None and request.dtype not in DTYPES:
            raise FeatureSetError(f"dtype must be one of {', '.join(DTYPES)}, got {request.dtype}")
        if request.pool not in POOLINGS:
            raise FeatureSetError(f"pool must be one of {', '.join(POOLINGS)}, got {request.pool}")
        if request.segments is not None and request.pool == "none":
            raise FeatureSetError("segments are what is pooled over: give pool=mean or pool=statistics")
        self._sum = parse_sum(request.sum)
        self._spans = None if request.segments is None else read_segments(request.segments, features)
        self.ids = [id for id in features if self._spans is None or id in self._spans]
        self._check_first()
        self._record = self._describe()
        check_destination(output, features.folder, self._record)

    def run(self) -> Generator[Converted, None, None]:
        """Converts; yields what became of each recording. Closed before its end, it leaves what is whole.

        A recording that cannot be read or converted is written to `failures.jsonl` in the output with its reason, and
        the conversion goes on. Without layers, sum, pool and dtype nothing is lost: no bit, no name.

        Raises:
            ConversionError: the output cannot be written. FeatureSetError: another process writes to it.
        """
        written = 0
        try:
            with destination(self._output, self._record) as finished:
                with self._writer(self._output) as writer:
                    for id in self.ids:
                        try:
                            made, metadata = self._make(self._features[id])
                            _write(writer, id, made, metadata)
                        except FeatureSetError as error:
                            note_failure(self._output, id, str(error))
                            yield Converted(id, str(error))
                        else:
                            written += 1
                            yield Converted(id, None, sum(tensor.nbytes for tensor in made.values()))
                finished(written)
        except OSError as error:
            raise ConversionError(f"cannot write to {self._output}: {error.strerror or error}") from error

    def _check_first(self) -> None:
        """Tries the request on the first recording that can be read: what is wrong with it is wrong with all."""
        for id in self.ids:
            try:
                recording = self._features[id]
                frames = {layer: recording[layer] for layer in self._chosen(recording)}
            except DamagedError:
                continue
            if self._sum is not None:
                self._sum(frames)
            for tensor in frames.values():
                check_holds(self._request.dtype or dtype_name(tensor), self._request.layout, self._writer.holds)
            return

    def _describe(self) -> dict[str, object]:
        """What this conversion is: another one may not go into the same folder."""
        request = {name: value for name, value in dataclasses.asdict(self._request).items() if value is not None}
        source = {"features": os.fspath(self._features.folder.resolve()), "recordings": len(self.ids)}
        names = hashlib.sha256("\n".join(self.ids).encode(errors="surrogateescape")).hexdigest()
        return json.loads(json.dumps({**source, "sha256_of_ids": names, **request}, default=os.fspath))

    def _chosen(self, recording: Recording) -> tuple[str, ...]:
        chosen = select(recording.layers, self._request.layers)
        return chosen if self._sum is None else self._sum.chosen(chosen)

    def _make(self, recording: Recording) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Features and metadata as they are to be written."""
        request, metadata = self._request, dict(recording.metadata)
        chosen = self._chosen(recording)
        frames = {layer: recording[layer] for layer in chosen}
        targets = {layer: DTYPES[request.dtype] if request.dtype else tensor.dtype for layer, tensor in frames.items()}
        rates = {}
        if self._spans is not None:
            rates = {layer: recording.frame_rate(layer) for layer in chosen}
        if self._sum is not None:
            frames, targets = {SUM: self._sum(frames)}, {SUM: targets[chosen[-1]]}
            rates = {SUM: rates[chosen[-1]]} if rates else {}
            metadata["sum"] = json.dumps(self._sum.described(chosen))
        if request.pool != "none":
            if "pool" in metadata:
                raise FeatureSetError(f"is pooled already (pool={metadata['pool']}): it has no frames")
            metadata["pool"] = request.pool
            if self._spans is None:
                frames = {layer: pool(tensor, request.pool) for layer, tensor in frames.items()}
            else:
                spans = self._spans[recording.id]
                frames = {layer: pool_spans(x, spans, request.pool, rates[layer]) for layer, x in frames.items()}
                metadata["spans"] = json.dumps(spans, ensure_ascii=False)
        made = {layer: cast(tensor, targets[layer], layer) for layer, tensor in frames.items()}
        if tuple(made) != recording.layers:
            metadata["layers"] = ",".join(made)
        if request.dtype is not None:
            metadata["dtype"] = request.dtype
        return made, metadata


def cast(tensor: Tensor, dtype: torch.dtype, layer: str) -> Tensor:
    """The tensor in another dtype. Raises FeatureSetError where a finite value has no finite one there."""
    made = tensor.to(dtype).contiguous()
    lost = tensor.isfinite() & ~made.isfinite()
    if count := int(lost.sum()):
        name = dtype_name(made)
        raise FeatureSetError(
            f"{layer}: {count:,} of {tensor.numel():,} values are beyond {name}, which ends at "
            f"{torch.finfo(dtype).max:g}; the largest is {tensor[lost].abs().max():g}: "
            + ("dtype=bfloat16 or dtype=float32 holds them" if name == "float16" else "dtype=float64 holds them")
        )
    return made


def _write(writer: Writer, id: str, features: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    try:
        writer.write(id, features, metadata)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # it concerns one recording; what else there is the next would meet too
            raise
        raise FeatureSetError(f"cannot be written: {error.strerror}") from error
