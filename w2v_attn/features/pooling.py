"""Pooling over time: a vector for a whole recording, or for each of its spans."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.features.feature_errors import RecordingFeaturesError
from w2v_attn.features.recording_features import Span, frame_times

POOLINGS = ("none", "mean", "statistics")


def pool(frames: Tensor, kind: str) -> Tensor:
    """Pool frames [frames, channels] to the mean [channels], or mean and standard deviation concatenated [2 channels].

    Computed and returned in float32 at least. The variance is divided by the number of frames.
    """
    x = frames.to(torch.promote_types(frames.dtype, torch.float32))
    mean = x.mean(0)
    return mean if kind == "mean" else torch.cat([mean, (x - mean).square().mean(0).sqrt()])


def frames_of(span: Span, frames: int, rate: float) -> slice:
    """Return the frames with centres in [start, end); for a shorter span, the frame nearest to its middle.

    Raises:
        RecordingFeaturesError: the span begins after the end of the last frame.
    """
    if span.start >= frames / rate + 1 / rate:
        raise RecordingFeaturesError(
            f"the span {span.start:g} to {span.end:g} s begins after its end, at {frames / rate:.2f} s", kind="outside"
        )
    centres = frame_times(frames, rate)
    first, after = torch.searchsorted(centres, torch.tensor([span.start, span.end], dtype=torch.float64)).tolist()
    if first == after:
        first = int((centres - (span.start + span.end) / 2).abs().argmin())
        after = first + 1
    return slice(first, after)


def pool_spans(frames: Tensor, spans: Sequence[Span], kind: str, rate: float) -> Tensor:
    """Pool frames [frames, channels] to [spans, channels] or [spans, 2 channels]; see `pool` and `frames_of`."""
    return torch.stack([pool(frames[frames_of(span, len(frames), rate)], kind) for span in spans])
