"""The interface of problems: what the labels of recordings are, their loss and their metrics.

transformers calls them problem types. A problem is a file beside this one, and a line in `classification.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.training_errors import DataError


class Problem(ABC):
    """A problem whose outputs have names.

    Attributes:
        type: Its name in a config.
        best_metric: The metric that selects the best checkpoint; lower is better.
        target_dtype: Of targets.
        function: What transformers' pipeline applies to the logits.
        meaning: What the outputs are, for the model card.
        names: The names of the outputs, in the order of the outputs.
    """

    type: str
    best_metric: str
    target_dtype: torch.dtype
    function: str
    meaning: str
    names: list[str]

    @classmethod
    @abstractmethod
    def of_data(cls, labels: Sequence[str], head: Sequence[str] | None) -> "Problem":
        """Return the problem that the labels of training data describe.

        Args:
            labels: The labels, as written in the data.
            head: The outputs of the checkpoint's head, whose names and order are taken if the labels fit them.

        Raises:
            DataError: The labels cannot be used.
        """

    @classmethod
    @abstractmethod
    def of_head(cls, names: Sequence[str], labels: Sequence[str]) -> "Problem":
        """Return the problem that a head was trained for, to be measured on recordings with these labels.

        Raises:
            DataError: No label is one of the head.
        """

    def first_bias(self) -> list[float] | None:
        """Return the bias that a new head starts with; None: zeros."""
        return None

    @abstractmethod
    def unusable_reason(self, label: str | None) -> str | None:
        """Return why a recording with this label cannot be trained on; None if it can."""

    def is_labelled(self, label: str | None) -> bool:
        """Return whether predictions can be compared with this label."""
        return label is not None

    @abstractmethod
    def target(self, label: str) -> list[Any]:
        """Return the target of a label."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each recording, float32 [B], for logits [B, outputs]."""

    @abstractmethod
    def reference(self, label: str) -> str:
        """Return a label in one form, for people."""

    @abstractmethod
    def hypothesis(self, found: Any) -> str:
        """Return a prediction in the form of `reference`."""

    def written(self, prediction: Prediction) -> tuple[Any, Any]:
        """Return the reference and the hypothesis of a prediction, as values of JSON."""
        return prediction.reference, prediction.hypothesis

    @abstractmethod
    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics, including `best_metric`."""

    def measure_outputs(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the metrics of each output, where they differ from those of all."""
        return {}

    @abstractmethod
    def error_of(self, prediction: Prediction) -> float:
        """Return the error of one prediction; 0 is an exact match."""

    @abstractmethod
    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        """Yield (name, value) rows about the labels of training data."""

    def classes(self, rows: Sequence[Row]) -> list[str]:
        """Return the class of each recording.

        Raises:
            DataError: Recordings are not of one class each.
        """
        raise DataError(f"data.balance=true needs one class for each recording, but this is a {self.type}")

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        """Return a problem of the model as a whole; None if there is none."""
        return None

    @abstractmethod
    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        """Write plots and tables of the predictions."""
