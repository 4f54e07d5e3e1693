"""The recognisers of classification heads: one label, several labels, or values for each recording."""

from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.classification_heads import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    output_names,
    problem_type_of,
)
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.transcription.outputs import Label, Labels, Values
from w2v_attn.transcription.recognizer import Recognizer

# Labels of a recording whose scores are kept where one of them is right.
KEPT_SCORES = 5


class LabelRecognizer(Recognizer):
    """A recogniser whose head gives labels or values, of recordings or of frames.

    Attributes:
        names: The names of the outputs.
        problem_type: What they mean: exclusive classes, independent classes, or values.
        of_frames: Whether each frame has outputs; else the recording has.

    Args:
        checkpoint: The loaded model.
        problem_type: Instead of that of the config; None: that of the config.
        threshold: The probability above which a recording (a frame) has a label, where labels are independent.
        options: See `WaveformModel`.
    """

    of_frames = False

    def __init__(
        self, checkpoint: Checkpoint, *, problem_type: str | None = None, threshold: float = 0.5, **options: Any
    ):
        super().__init__(checkpoint, **options)
        self.names = output_names(self.config)
        self.problem_type = problem_type or problem_type_of(self.config, frames=self.of_frames)
        self.threshold = check_threshold(threshold)
        self.has_times = self.problem_type != REGRESSION

    def describe_decoding(self) -> dict[str, str]:
        """See `Recognizer`."""
        described = {"labels": ", ".join(self.names), "problem_type": self.problem_type}
        return {**described, "threshold": str(self.threshold)} if self.problem_type == MULTI_LABEL else described

    def outputs(self, waveform: Tensor) -> Tensor:
        """Return the logits, float32 [outputs]; of frames [frames, outputs]."""
        return self.logits(waveform)


class Classifier(LabelRecognizer):
    """A recogniser with a classification head: labels or values of a recording. See `LabelRecognizer`.

    Raises:
        ValueError: One label is asked for, and there is one output.
    """

    def __init__(self, checkpoint: Checkpoint, **options: Any):
        super().__init__(checkpoint, **options)
        if self.problem_type == SINGLE_LABEL and len(self.names) == 1:
            raise ValueError(
                f"problem_type={SINGLE_LABEL} needs two outputs or more, and the checkpoint has one: its probability "
                "would be 1 for every recording. Say problem_type=multi for a yes or no, or regression for a value"
            )

    def decode(self, outputs: Tensor) -> Label | Labels | Values:
        """Return the label, the labels or the values for logits, float32 [outputs]."""
        if self.problem_type == REGRESSION:
            return Values(dict(zip(self.names, outputs.tolist(), strict=True)))
        if self.problem_type == MULTI_LABEL:
            return self._labels(outputs.sigmoid())
        return self._label(outputs.softmax(-1))

    def _label(self, probabilities: Tensor) -> Label:
        """Return the most probable label and the scores of the five most probable ones."""
        likeliest = probabilities.topk(min(KEPT_SCORES, len(probabilities)))
        scores = {
            self.names[i]: round(p, 4)
            for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        }
        label = next(iter(scores))
        return Label(label, scores[label], scores)

    def _labels(self, probabilities: Tensor) -> Labels:
        """Return the labels above the threshold, and the scores of all labels, the most probable first."""
        order = torch.argsort(probabilities, descending=True).tolist()
        scores = {self.names[i]: probabilities[i].item() for i in order}
        return Labels(tuple(name for name, p in scores.items() if p > self.threshold), scores)


def check_threshold(threshold: float) -> float:
    """Return a threshold of probabilities.

    Raises:
        ValueError: It is not a probability.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability from 0 to 1, got {threshold}")
    return threshold
