"""Classification: one label for a recording, such as a keyword, speaker, emotion or language."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.pooled_classifiers import POOLINGS
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction, classification_metrics
from w2v_attn.training.options import ClassificationOptions
from w2v_attn.training.plots import plot_confusions
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.classifier import Classifier
from w2v_attn.transcription.outputs import Label
from w2v_attn.transcription.recognizer import Recognizer

LAYERS = ("last", "weighted")
MAX_PLOTTED_LABELS = 60  # labels of a legible confusion matrix


class Classification(Task):
    """Classification of recordings.

    labels: the labels in the order of their numbers.
    """

    name, head, best_metric, pipeline = "classification", "ForSequenceClassification", "error", "audio-classification"

    def __init__(self, labels: Sequence[str], options: ClassificationOptions, *, keeps_head: bool = False):
        self.labels, self.keeps_head, self.pooling = list(labels), keeps_head, options.pooling
        self._numbers = {label: number for number, label in enumerate(self.labels)}
        self._options = options

    @classmethod
    def from_data(
        cls, options: ClassificationOptions, train: Sequence[Row], checkpoint: Checkpoint | None
    ) -> "Classification":
        """Return the task for training rows; a head of the checkpoint is kept if it has all their labels.

        Raises:
            DataError: An option is invalid, or the rows have fewer than two labels.
        """
        if options.pooling not in POOLINGS:
            raise DataError(f"task.pooling must be one of {', '.join(POOLINGS)}, got {options.pooling}")
        if options.layers not in LAYERS:
            raise DataError(f"task.layers must be one of {', '.join(LAYERS)}, got {options.layers}")
        found = sorted({row.label for row in train if row.label is not None})
        if len(found) < 2:
            had = f"all are {found[0]!r}" if found else "no recording has one"
            raise DataError(
                f"a classifier needs at least two labels; {had}. Expected a folder with a sub-folder for each label, a "
                "column `label` in the manifest, or data.pattern with a group `label`"
            )
        if checkpoint is not None and type(checkpoint.model).__name__.endswith(cls.head):
            own = [checkpoint.model.config.id2label[number] for number in range(checkpoint.model.config.num_labels)]
            if set(found) <= set(own):
                return cls(own, options, keeps_head=True)
        return cls(found, options)

    def config_changes(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": dict(self._numbers),
            "classifier_proj_size": self._options.width,
            "use_weighted_layer_sum": self._options.layers == "weighted",
        }

    def reference(self, row: Row) -> str:
        return row.label or ""

    def target(self, row: Row) -> list[int]:
        return [self._numbers[row.label or ""]]

    def is_labelled(self, row: Row) -> bool:
        return row.label is not None

    def unusable_reason(self, row: Row, frames: int) -> str | None:
        if row.label is None:
            return "has no label"
        return None if row.label in self._numbers else f"has a label that is not in the training data: {row.label}"

    def losses(self, logits: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels[:, 0], reduction="none")

    def recognizer(self, checkpoint: Checkpoint, device: torch.device, backend: str) -> Recognizer:
        return Classifier(checkpoint, device=device, backend=backend)

    def hypothesis(self, found: Label) -> str:
        return found.label

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return classification_metrics([p.reference for p in predictions], [p.hypothesis for p in predictions])

    def error_of(self, prediction: Prediction) -> float:
        """Return 0 for an exact match, else the probability of the wrong label."""
        return 0.0 if prediction.hypothesis == prediction.reference else prediction.found.score

    def symbols(self) -> list[str]:
        return self.labels

    def counts(self, rows: Sequence[Row]) -> Counter[str]:
        return Counter(self.reference(row) for row in rows)

    def classes(self, rows: Sequence[Row]) -> list[str]:
        return [self.reference(row) for row in rows]

    def save(self, folder: Path) -> None:
        """Write nothing: the labels are in the config."""

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        said = {prediction.hypothesis for prediction in predictions}
        if len(said) == 1 and len({prediction.reference for prediction in predictions}) > 1:
            return f"every prediction is {said.pop()!r}: the model has not learned to distinguish the labels"
        return None

    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        if len(self.labels) <= MAX_PLOTTED_LABELS:
            plot_confusions(predictions, self.labels, folder / "confusions.png")
