"""From a batch of recordings to the features of each, on the CPU."""

import logging
from collections.abc import Sequence

from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.dtypes import dtype_name
from w2v_attn.encoder.cost import LONG_RECORDING, LONG_WAIT
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.features.arrays import is_finite
from w2v_attn.features.transform import Transformed
from w2v_attn.run_error import RecordingError
from w2v_attn.runs.outcomes import row_failure
from w2v_attn.runs.pipeline import Batch

logger = logging.getLogger(__name__)


def compute_features(encoder: Encoder, spec: FeatureSpec, batch: Batch) -> list[Transformed | ValueError]:
    """Return what is made of each recording of a batch; a ValueError in place of those that cannot be used.

    Reasons are features that are not finite, a value beyond the range of the output dtype, or a span beyond the end.
    """
    for row, recording in batch:
        _announce(encoder, row, recording, spec.layers)
    found = encoder.extract([recording.waveform for _, recording in batch], spec.layers)
    return [_transformed(spec, row, _to_cpu(features)) for (row, _), features in zip(batch, found, strict=True)]


def _announce(encoder: Encoder, row: Row, recording: Recording, layers: Sequence[str]) -> None:
    """Log the expected time of a long recording before it starts."""
    if recording.duration < LONG_RECORDING:
        return
    seconds = encoder.expected_seconds(len(recording.waveform), layers)
    if seconds > LONG_WAIT:
        logger.warning(
            "%s: %.0f minutes of audio will take about %.0f minutes%s", row.id, recording.duration / 60, seconds / 60,
            "; long_form=sliding_window takes less, and is not exact" if encoder.long_form.kind == "full" else "",
        )  # fmt: skip


def _to_cpu(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the features on the CPU, each in its own memory; copied only if necessary, because an hour is 0.5 GB.

    They leave the GPU at once, whose memory the next batch needs. On a CPU features may be views of a whole batch, and
    `final` may be the tensor of the last layer.
    """
    found, taken = dict[str, Tensor](), set[int]()
    for name, tensor in features.items():
        own = tensor.to("cpu")
        memory = own.untyped_storage()
        if memory.nbytes() > own.nbytes or memory.data_ptr() in taken:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found


def _transformed(spec: FeatureSpec, row: Row, features: dict[str, Tensor]) -> Transformed | ValueError:
    if all(map(is_finite, features.values())):
        try:
            return spec.transform(row.id, features)
        except ValueError as error:
            return row_failure(error)
    dtype = dtype_name(next(iter(features.values())).dtype)
    way_out = "" if dtype in ("float32", "float64") else ": extract with dtype=float32"
    return RecordingError(f"its features are not finite in {dtype}{way_out}", kind="non_finite")
