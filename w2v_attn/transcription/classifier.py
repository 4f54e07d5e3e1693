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


class Classifier(Recognizer):
    """A recogniser with a classification head.

    Attributes:
        names: The names of the outputs.
        problem_type: What they mean: exclusive classes, independent classes, or values.

    Args:
        checkpoint: The loaded model.
        problem_type: Instead of that of the config; None: that of the config.
        threshold: The probability above which a recording has a label, where labels are independent.
        options: See `WaveformModel`.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, problem_type: str | None = None, threshold: float = 0.5, **options: Any
    ):
        super().__init__(checkpoint, **options)
        self.names = output_names(self.config)
        self.problem_type = problem_type or problem_type_of(self.config)
        self.threshold = check_threshold(threshold)
        self.has_times = self.problem_type != REGRESSION
        if self.problem_type == SINGLE_LABEL and len(self.names) == 1:
            raise ValueError(
                f"problem_type={SINGLE_LABEL} needs two outputs or more, and the checkpoint has one: its probability "
                "would be 1 for every recording. Say problem_type=multi for a yes or no, or regression for a value"
            )

    def describe_decoding(self) -> dict[str, str]:
        """See `Recognizer`."""
        described = {"labels": ", ".join(self.names), "problem_type": self.problem_type}
        return {**described, "threshold": str(self.threshold)} if self.problem_type == MULTI_LABEL else described

    def outputs(self, waveform: Tensor) -> Tensor:
        """Return the logits, float32 [outputs]."""
        return self.logits(waveform)

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
