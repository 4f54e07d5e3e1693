"""A batch of recordings -> the features of each, on the CPU; or why they cannot be used."""

import logging
from collections.abc import Sequence

from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.features.arrays import is_finite
from w2v_attn.features.transform import Transformed
from w2v_attn.runs.pipeline import Batch

logger = logging.getLogger(__name__)

# Seconds of audio, and of waiting, from which it is said how long a recording will take.
LONG_RECORDING, LONG_WAIT = 300.0, 120.0


def compute_features(encoder: Encoder, spec: FeatureSpec, batch: Batch) -> list[Transformed | ValueError]:
    """What is made of each recording of a batch; a ValueError in the place of those that cannot be used.

    Such as features that are not finite, a value beyond the dtype that is asked for, a span beyond the end.
    """
    for row, recording in batch:
        _announce(encoder, row, recording, spec.layers)
    found = encoder.extract([recording.waveform for _, recording in batch], spec.layers)
    return [_made(spec, row, _apart(features)) for (row, _), features in zip(batch, found, strict=True)]


def _announce(encoder: Encoder, row: Row, recording: Recording, layers: Sequence[str]) -> None:
    """Says before it begins what a long recording will take."""
    if recording.duration < LONG_RECORDING:
        return
    seconds = encoder.expected_seconds(len(recording.waveform), layers)
    if seconds > LONG_WAIT:
        logger.warning(
            "%s: %.0f minutes of audio will take about %.0f minutes%s", row.id, recording.duration / 60, seconds / 60,
            "; long_form=sliding_window takes less, and is not exact" if encoder.long_form.kind == "full" else "",
        )  # fmt: skip


def _apart(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same on the CPU, each in memory of its own. What has that is not copied: an hour is half a gigabyte.

    Off the GPU at once, for its memory is the next batch's. On a CPU features can be part of a batch's, and `final` the
    very tensor that the last layer is.
    """
    apart, taken = dict[str, Tensor](), set[int]()
    for name, tensor in features.items():
        own = tensor.to("cpu")
        memory = own.untyped_storage()
        if memory.nbytes() > own.nbytes or memory.data_ptr() in taken:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def _made(spec: FeatureSpec, row: Row, features: dict[str, Tensor]) -> Transformed | ValueError:
    if all(map(is_finite, features.values())):
        try:
            return spec.transform(row.id, features)
        except ValueError as error:
            return ValueError(str(error))
    dtype = str(next(iter(features.values())).dtype).removeprefix("torch.")
    way_out = "" if dtype in ("float32", "float64") else ": extract with dtype=float32"
    return ValueError(f"its features are not finite in {dtype}{way_out}")
