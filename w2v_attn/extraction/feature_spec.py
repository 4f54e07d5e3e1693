"""The specification of features: layers, what is made of them, their metadata, and which stored features are valid."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from w2v_attn import __version__
from w2v_attn.audio.channels import MEAN, channel_fingerprint, conversions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.checkpoints.checksum import checkpoint_hash
from w2v_attn.corpus.rows import Row
from w2v_attn.dtypes import dtype_name
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.layers import check_layers
from w2v_attn.feature_files import FORMAT
from w2v_attn.features.transform import FeatureTransform, Transformed, underflow_of
from w2v_attn.runs.outcomes import CachedResult
from w2v_attn.runs.row_reader import is_location_of, readable, source_state


@dataclass(frozen=True)
class FeatureLocation:
    """Where the features of a recording are, and the size of their last tensor; a vector counts as one frame.

    Attributes:
        path: The file, or the folder of shards.
        frames, channels: Size of the tensor.
        underflowed: Values that became 0 in the stored dtype.
    """

    path: Path
    frames: int
    channels: int
    underflowed: int = 0


class FeatureSpec:
    """What a run makes of each recording.

    Attributes:
        layers: The layers that the encoder computes.
        fingerprint: What determines the features.

    Args:
        encoder: The encoder.
        layers: The layers; see `encoder.layers.check_layers`.
        transform: What is made of them; None keeps them as they are.
        channel: The channel that is read of each recording; see `audio.channels`.

    Raises:
        ValueError: an unknown layer or channel, or layers that cannot be summed as asked for.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[str],
        transform: FeatureTransform | None = None,
        *,
        channel: str | int = MEAN,
    ):
        self._encoder, self._transform = encoder, FeatureTransform() if transform is None else transform
        self._asked, self._channel = tuple(layers), channel
        self.layers = self._transform.input_layers(check_layers(layers, encoder.num_layers))
        self._rates = {layer: encoder.frame_rate(layer) for layer in self.layers}
        self._check_sum()
        made = self._transform.fingerprint(self.layers)
        if made.get("output_dtype") == dtype_name(encoder.dtype):
            del made["output_dtype"]  # the dtype of the computation already determines it
        self.fingerprint = {**fingerprint_of(encoder, self.layers), **channel_fingerprint(channel), **made}
        self._names = self._transform.output_layers(self.layers)
        self._checksums = {
            "fingerprint": hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest(),
            "checkpoint_sha256": self.fingerprint["checkpoint"],
        }

    def transform(self, row_id: str, features: Mapping[str, Tensor]) -> Transformed:
        """Return what is made of the layers of a row, on the CPU. Raises ValueError: see `FeatureTransform.apply`."""
        return self._transform.apply(row_id, features, self._rates.__getitem__)

    def flags(self, row: Row, recording: Recording) -> tuple[str, ...]:
        """Return warnings about what is asked of a recording: spans beyond its end."""
        return self._transform.span_flags(row.id, recording.duration)

    @cached_property
    def without_spans(self) -> "FeatureSpec":
        """This specification for whole recordings, without spans: it can be tried on any recording."""
        transform = self._transform.without_spans
        return (
            self
            if transform is self._transform
            else FeatureSpec(self._encoder, self._asked, transform, channel=self._channel)
        )

    @property
    def vectors_per_recording(self) -> float | None:
        """Vectors per recording, on average; None for features with frames."""
        if self._transform.pooling == "none":
            return None
        spans = self._transform.spans
        return 1.0 if spans is None else sum(map(len, spans.values())) / max(1, len(spans))

    @property
    def dtype(self) -> str:
        """Dtype of the features."""
        return self._transform.output_dtype or dtype_name(self._encoder.dtype)

    def metadata(self, row: Row, recording: Recording, underflowed: int = 0) -> dict[str, str]:
        """Return the metadata of a row's features: strings, because safetensors holds nothing else."""
        about = encoder_metadata(self._encoder, row, recording, self.layers)
        return self._transform.metadata(row.id, about | self._checksums, self.layers, underflowed)

    def location(self, path: Path, shapes: Mapping[str, Sequence[int]], underflowed: int) -> FeatureLocation:
        """Return the location of features with these shapes."""
        frames, channels = (1, *shapes[self._names[-1]])[-2:]
        return FeatureLocation(path, frames, channels, underflowed)

    def check_stored(
        self, row: Row, path: Path, about: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
    ) -> CachedResult[FeatureLocation] | str | None:
        """Return the stored result of a row if it is valid.

        Args:
            row: The row.
            path: Where its features are.
            about: Their metadata.
            shapes: The shapes of their tensors.

        Returns:
            The cached result; a string that says why it is not valid; None if the source cannot be read now.

        Raises:
            ValueError: the features belong to another configuration, or to another file with the same id.
        """
        whole = shapes.keys() == set(self._names) and all(
            len(shape) == self._transform.ndim for shape in shapes.values()
        )
        if not whole or about.get("fingerprint") != self._checksums["fingerprint"]:
            raise ValueError(
                f"{path} holds features of another configuration, of the checkpoint {about.get('checkpoint')}, layers "
                f"{about.get('layers')}, {about.get('output_dtype', about.get('dtype'))}: name another output"
            )
        state = source_state(row)
        if state is None:
            return None  # its outcome will state that it cannot be read; older features may stay
        if about["source_state"] != state:
            if not is_location_of(row, about["source"]):
                raise ValueError(
                    f"{path} holds features of {about['source']}, and {row.path} has the same id: name another output"
                )
            return "of another state of their source"
        flags = tuple(about["flags"].split("; ")) if about["flags"] else ()
        written = self.location(path, shapes, underflow_of(about))
        samples, rate = int(about["samples"]), int(about["sample_rate"])
        return CachedResult(written, samples, rate, flags, _conversions(about, rate))

    def _check_sum(self) -> None:
        """Raise ValueError if the layers cannot be summed for any recording."""
        if self._transform.weighted_sum is None:
            return
        self._transform.weighted_sum({layer: torch.zeros(1, 1) for layer in self.layers})
        if len(self.layers) == 1:
            raise ValueError(
                f"layer_weights sums layers, and there is only {self.layers[0]}: give layers=all, or a range"
            )
        if len(set(self._rates.values())) > 1:
            rates = ", ".join(f"{layer} {rate:g}" for layer, rate in self._rates.items())
            raise ValueError(f"layers of other frame rates cannot be summed ({rates} Hz): choose others with layers=")


def encoder_metadata(encoder: Encoder, row: Row, recording: Recording, layers: Sequence[str]) -> dict[str, str]:
    """Return the metadata of layers of a row as they come from the encoder."""
    rates = {layer: encoder.frame_rate(layer) for layer in layers}
    return {
        "id": readable(row.id),
        "source": readable(row.location),
        "source_state": recording.source,
        "layers": ",".join(layers),
        "frame_rate": f"{rates[layers[-1]]:g}",
        **({"frame_rates": json.dumps(rates)} if len(set(rates.values())) > 1 else {}),
        "sample_rate": str(recording.sample_rate),
        "samples": str(len(recording.waveform)),
        "source_rate": str(recording.source_rate),
        "source_channels": str(recording.source_channels),
        **({"channel": str(recording.channel)} if recording.channel is not None else {}),
        "checkpoint": encoder.checkpoint.source,
        **({"language": language} if (language := encoder.checkpoint.language) is not None else {}),
        **({"base_model": base} if (base := encoder.checkpoint.base_model) is not None else {}),
        "dtype": dtype_name(encoder.dtype),
        "normalized": str(encoder.checkpoint.do_normalize).lower(),
        "flags": "; ".join(recording.flags),
        "version": __version__,
    }


def fingerprint_of(encoder: Encoder, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return what determines the features, except for their last bits."""
    return {
        "format": FORMAT,
        "checkpoint": checkpoint_hash(encoder.checkpoint),
        "language": str(encoder.checkpoint.language),
        "layers": ",".join(wanted),
        "dtype": dtype_name(encoder.dtype),
        "long_form": encoder.long_form.describe(),
    }


def _conversions(about: Mapping[str, str], rate: int) -> tuple[str, ...]:
    """Return how a recording was converted, from the metadata of its features."""
    channel = about.get("channel")
    return conversions(
        int(about["source_rate"]),
        rate,
        int(about.get("source_channels", 1)),  # not stated by earlier versions
        None if channel is None else int(channel),
    )
