"""One of several labels for each recording, such as a keyword, a speaker or a language: softmax, cross entropy."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.checkpoints.classification_heads import SINGLE_LABEL, are_unnamed, joined
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction, classification_metrics
from w2v_attn.training.plots import plot_confusions
from w2v_attn.training.tasks.problem import Problem
from w2v_attn.training.tasks.task import list_counts
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.outputs import Label

logger = logging.getLogger(__name__)

MAX_PLOTTED_LABELS = 60  # labels of a legible confusion matrix


class SingleLabel(Problem):
    """Classification with one label for each recording."""

    type, best_metric, target_dtype = SINGLE_LABEL, "error", torch.long
    function, meaning = "softmax", "One of these labels for each recording; scores are probabilities that add up to 1."

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    @classmethod
    def of_data(cls, labels: Sequence[str], head: Sequence[str] | None) -> "SingleLabel":
        found = sorted(set(labels))
        if len(found) < 2:
            had = f"all are {found[0]!r}" if found else "no recording has one"
            raise DataError(
                f"a classifier needs at least two labels; {had}. Expected a folder with a sub-folder for each label, a "
                "column `label` in the manifest, or data.pattern with a group `label`"
            )
        return cls(head if head is not None and set(found) <= set(head) else found)

    @classmethod
    def of_head(cls, names: Sequence[str], labels: Sequence[str]) -> "SingleLabel":
        check_known(set(labels), names)
        return cls(names)

    def unusable_reason(self, label: str | None) -> str | None:
        if label is None:
            return "has no label"
        return None if label in self._numbers else f"has a label that is not in the training data: {label}"

    def target(self, label: str) -> list[int]:
        return [self._numbers[label]]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets[:, 0], reduction="none")

    def reference(self, label: str) -> str:
        return label

    def hypothesis(self, found: Label) -> str:
        return found.label

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return classification_metrics([p.reference for p in predictions], [p.hypothesis for p in predictions])

    def error_of(self, prediction: Prediction) -> float:
        """Return 0 for an exact match, else the probability of the wrong label."""
        return 0.0 if prediction.hypothesis == prediction.reference else prediction.found.score

    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        counts = Counter(row.label or "" for row in rows)
        yield f"{len(counts)} labels", list_counts(counts)

    def classes(self, rows: Sequence[Row]) -> list[str]:
        return [row.label or "" for row in rows]

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        said = {prediction.hypothesis for prediction in predictions}
        if len(said) == 1 and len({prediction.reference for prediction in predictions}) > 1:
            return f"every prediction is {said.pop()!r}: the model has not learned to distinguish the labels"
        return None

    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        if len(self.names) <= MAX_PLOTTED_LABELS:
            plot_confusions(predictions, self.names, folder / "confusions.png")


def check_known(labels: set[str], names: Sequence[str]) -> None:
    """Raise DataError if no label of the data is an output of the head; warn if some are not: they count as errors."""
    if labels.isdisjoint(names):
        example = sorted(labels)[0]
        unnamed = "does not say what its outputs mean: they are called" if are_unnamed(names) else "has the labels"
        raise DataError(
            f"no label of the recordings is one of the checkpoint's: they have {joined(sorted(labels))}; the "
            f"checkpoint {unnamed} {joined(names)}. Say which is which: 'names={{{example}: {names[0]}, …}}'"
        )
    if unknown := sorted(labels - set(names)):
        logger.warning(
            "the checkpoint has no output for %s: such recordings count as errors. It has %s",
            joined(unknown),
            joined(names),
        )
