"""Any number of labels for each recording, such as sounds or several emotions: sigmoid, binary cross entropy."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.checkpoints.classification_heads import MULTI_LABEL
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.multi_label_metrics import multi_label_metrics, write_label_metrics
from w2v_attn.training.plots import plot_label_metrics
from w2v_attn.training.tasks.notation import is_empty, number_of, parsed
from w2v_attn.training.tasks.problem import Problem
from w2v_attn.training.tasks.single_label import MAX_PLOTTED_LABELS, check_known
from w2v_attn.training.tasks.task import list_counts
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.outputs import Labels

SEPARATORS = ";|,"


class MultiLabel(Problem):
    """Classification with any number of labels for each recording.

    Args:
        names: The labels.
        separator: What separates labels that are written in one string; None: such a string is one label.
    """

    type, best_metric, target_dtype = MULTI_LABEL, "error", torch.float32
    function = "sigmoid"
    meaning = "Any number of these labels for each recording; scores are probabilities, independent of each other."

    def __init__(self, names: Sequence[str], separator: str | None = None):
        self.names, self._separator = list(names), separator

    @classmethod
    def of_data(cls, labels: Sequence[str], head: Sequence[str] | None) -> "MultiLabel":
        # Beside objects, a string is a mistake, and no label of its own.
        objects = [label for label in labels if isinstance(parsed(label), dict)]
        labels = objects if 2 * len(objects) > len(labels) else labels
        labels = [label for label in labels if not _says_nothing(label, head or ())]
        separator = separator_of(labels, head or ())
        sets = {frozenset(split_labels(label, separator)) for label in labels}
        if len(sets) < 2:
            had = f"all have {', '.join(sorted(*sets)) or 'none'}" if sets else "no recording has a label"
            raise DataError(
                f"recordings with different labels are needed; {had}. Expected a column `label` with JSON lists such "
                'as ["music", "speech"], or with labels separated by one of ; | ,'
            )
        found = sorted(set().union(*sets))
        return cls(head if head is not None and set(found) <= set(head) else found, separator)

    @classmethod
    def of_head(cls, names: Sequence[str], labels: Sequence[str]) -> "MultiLabel":
        labels = [label for label in labels if not _says_nothing(label, names)]
        separator = separator_of(labels, names)
        if found := {name for label in labels for name in split_labels(label, separator)}:
            check_known(found, names)
        return cls(names, separator)

    def labels_of(self, label: str) -> list[str]:
        """Return the labels of a recording, each once, in the order in which they are written."""
        return split_labels(label, self._separator)

    def unusable_reason(self, label: str | None) -> str | None:
        if label is None:
            return "has no label"
        if _says_nothing(label, self.names):
            return f"does not say which labels it has: {label[:60]}"
        outside = [name for name in self.labels_of(label) if name not in self.names]
        return f"has a label that is not in the training data: {', '.join(outside)}" if outside else None

    def is_labelled(self, label: str | None) -> bool:
        return label is not None and not _says_nothing(label, self.names)

    def target(self, label: str) -> list[float]:
        given = set(self.labels_of(label))
        return [float(name in given) for name in self.names]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(-1)

    def reference(self, label: str) -> str:
        return ", ".join(sorted(self.labels_of(label)))

    def hypothesis(self, found: Labels) -> str:
        return ", ".join(sorted(found.labels))

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return multi_label_metrics(*self._compared(predictions), self.names)

    def written(self, prediction: Prediction) -> tuple[list[str], list[str]]:
        return self.labels_of(prediction.row.label or ""), list(prediction.found.labels)

    def error_of(self, prediction: Prediction) -> float:
        """Return the share of labels that only one of reference and hypothesis has."""
        given, said = set(self.labels_of(prediction.row.label or "")), set(prediction.found.labels)
        return len(given ^ said) / len(given | said) if given | said else 0.0

    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        counts = Counter(name for row in rows for name in self.labels_of(row.label or ""))
        yield f"{len(counts)} labels", list_counts(counts)
        if empty := sum(not self.labels_of(row.label or "") for row in rows):
            yield "no label", f"{empty:,} recordings"

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        if any(p.reference for p in predictions) and not any(p.hypothesis for p in predictions):
            return "no recording gets a label: train longer, or lower the threshold (task.threshold)"
        return None

    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        measured = write_label_metrics(*self._compared(predictions), self.names, folder / "labels.csv")
        if len(measured) <= MAX_PLOTTED_LABELS:
            plot_label_metrics(measured, folder / "labels.png")

    def _compared(self, predictions: Sequence[Prediction]) -> tuple[list[list[str]], list[Labels]]:
        return [self.labels_of(p.row.label or "") for p in predictions], [p.found for p in predictions]


def separator_of(labels: Sequence[str], names: Sequence[str]) -> str | None:
    """Return what separates labels in strings: the first of ; | , that occurs in one that is not itself a name."""
    known = set(names)
    strings = [label for label in labels if label not in known and _json_list(label) is None]
    return next((sign for sign in SEPARATORS if any(sign in string for string in strings)), None)


def split_labels(label: str, separator: str | None) -> list[str]:
    """Return the labels in JSON or in a string, each once."""
    parts = _json_list(label)
    if parts is None:
        parts = label.split(separator) if separator is not None else [label]
    return list(dict.fromkeys(name for part in parts if (name := str(part).strip())))


def _says_nothing(label: str, names: Sequence[str]) -> bool:
    """Return whether a label leaves open which labels there are; an empty string or list says that there are none."""
    if label in names or not label.strip() or parsed(label) in ([], {}):
        return False
    return is_empty(label)


def _json_list(label: str) -> list[object] | None:
    """Return the labels in a JSON list, or the names in a JSON object whose value is 1; None for other strings."""
    found = parsed(label)
    if isinstance(found, dict):
        return [name for name, value in found.items() if number_of(value) == 1]
    return found
