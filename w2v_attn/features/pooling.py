"""Frames -> vectors: of a whole recording, or of each of its spans."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.recording_features import frame_times

POOLINGS = ("none", "mean", "statistics")


class Span(NamedTuple):
    """A part of a recording. start, end: seconds. label: what it is, such as a phone; empty where it is not said."""

    start: float
    end: float
    label: str = ""


def pool(frames: Tensor, kind: str) -> Tensor:
    """[frames, channels] -> mean [channels], or mean and standard deviation side by side [2 channels].

    Computed in float32 at least, and given so. The variance is divided by the number of frames.
    """
    x = frames.to(torch.promote_types(frames.dtype, torch.float32))
    mean = x.mean(0)
    return mean if kind == "mean" else torch.cat([mean, (x - mean).square().mean(0).sqrt()])


def frames_of(span: Span, frames: int, rate: float) -> slice:
    """The frames whose centres are in [start, end); where none is, for the span is short, the one nearest its middle.

    Raises:
        FeatureSetError: the span begins after the last frame has ended.
    """
    if span.start >= frames / rate + 1 / rate:
        raise FeatureSetError(
            f"the span {span.start:g} to {span.end:g} s begins after its end, at {frames / rate:.2f} s"
        )
    centres = frame_times(frames, rate)
    first, after = torch.searchsorted(centres, torch.tensor([span.start, span.end], dtype=torch.float64)).tolist()
    if first == after:
        first = int((centres - (span.start + span.end) / 2).abs().argmin())
        after = first + 1
    return slice(first, after)


def pool_spans(frames: Tensor, spans: Sequence[Span], kind: str, rate: float) -> Tensor:
    """[frames, channels] -> [spans, channels], or [spans, 2 channels]; see `pool` and `frames_of`."""
    return torch.stack([pool(frames[frames_of(span, len(frames), rate)], kind) for span in spans])
