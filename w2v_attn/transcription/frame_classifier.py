"""The recogniser of frame classification heads, such as those of speaker diarization and voice activity detection."""

from collections.abc import Iterator

import torch
from torch import Tensor

from w2v_attn.checkpoints.classification_heads import MULTI_LABEL, REGRESSION
from w2v_attn.transcription.classifier import LabelRecognizer
from w2v_attn.transcription.outputs import FrameValues, Span, Spans


class FrameClassifier(LabelRecognizer):
    """A recogniser that gives each frame labels or values; neighbouring frames with the same label are one span.

    See `LabelRecognizer`.
    """

    of_frames = True

    def decode(self, outputs: Tensor) -> Spans | FrameValues:
        """Return spans or values for logits, float32 [frames, outputs]."""
        if self.problem_type == REGRESSION:
            return FrameValues(dict(zip(self.names, outputs.T.tolist(), strict=True)), self.frame_rate())
        if self.problem_type == MULTI_LABEL:
            probabilities = outputs.sigmoid()
            has_label = probabilities > self.threshold
        else:
            probabilities = outputs.softmax(-1)
            has_label = torch.nn.functional.one_hot(probabilities.argmax(-1), len(self.names)).bool()
        spans = [
            self._span(label, first, end, probabilities)
            for label in range(len(self.names))
            for first, end in runs(has_label[:, label])
        ]
        return Spans(tuple(sorted(spans, key=lambda span: (span.start, span.end))))

    def _span(self, label: int, first: int, end: int, probabilities: Tensor) -> Span:
        rate = self.frame_rate()
        score = probabilities[first:end, label].mean().item()
        return Span(round(first / rate, 3), round(end / rate, 3), self.names[label], round(score, 4))


def runs(values: Tensor) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of each run of True values in a tensor, bool [frames]; `end` is behind the run."""
    edges = torch.diff(values.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    yield from zip(torch.where(edges > 0)[0].tolist(), torch.where(edges < 0)[0].tolist(), strict=True)
