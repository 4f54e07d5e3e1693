"""The interface of fine-tuning tasks; a new task is a file here, one in conf/task/ and a line in task_registry.py."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.recognizer import Recognizer

MAX_LISTED_COUNTS = 40


class Task(ABC):
    """A fine-tuning task: targets, loss, metrics and files.

    Attributes:
        name: As in `task=`.
        head: The suffix of the Hugging Face model classes with its head.
        best_metric: The metric that selects the best checkpoint; lower is better.
        pipeline: The name of its transformers pipeline.
        pipeline_arguments: What a call of the pipeline needs beside a recording, for the model card.
        keeps_head: Whether the outputs of the checkpoint's head mean the same in this task.
        head_reason: Why the head is kept or new, for people; empty: nothing is known.
        pooling: How the head pools frames, if it does.
        target_dtype: Of targets.
    """

    name: str
    head: str
    best_metric: str
    pipeline: str
    pipeline_arguments: str = ""
    keeps_head: bool = False
    head_reason: str = ""
    pooling: str = "mean"
    target_dtype: torch.dtype = torch.long

    @abstractmethod
    def config_changes(self) -> dict[str, Any]:
        """Return the values of the model's config that the task determines."""

    def initialize_head(self, model: Any) -> None:
        """Change the random weights of a new head, where better ones are known."""
        return

    @abstractmethod
    def reference(self, row: Row) -> str:
        """Return the text or label that the model should predict for a recording."""

    @abstractmethod
    def target(self, row: Row) -> list[Any]:
        """Return the reference as the loss needs it, such as output numbers."""

    @abstractmethod
    def is_labelled(self, row: Row) -> bool:
        """Return whether a recording has a reference."""

    @abstractmethod
    def unusable_reason(self, row: Row, frames: int) -> str | None:
        """Return why a recording with this number of frames cannot be trained on; None if it can."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        """Return the loss of each recording, float32 [B].

        Args:
            logits: Outputs of the head.
            labels: Of `target_dtype`, [B, L], padded with -100.
            frames: int64 [B], the number of real frames of each recording.
        """

    @abstractmethod
    def recognizer(self, checkpoint: Checkpoint, device: torch.device, backend: str) -> Recognizer:
        """Return a recognizer with the task's model."""

    @abstractmethod
    def hypothesis(self, found: Any) -> str:
        """Return the text or label of a recognizer's output, in the form of `reference`."""

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
    def symbols(self) -> Sequence[str]:
        """Return the outputs of the head in the order of their numbers."""

    @abstractmethod
    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        """Yield (name, value) rows about the references of training data, for the report before training."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what the model needs besides weights and preprocessor."""

    def classes(self, rows: Sequence[Row]) -> list[str]:
        """Return the class of each recording.

        Raises:
            DataError: The task has no classes.
        """
        raise DataError(f"data.balance=true needs classes, but task={self.name} has none")

    def describe_dropped(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        """Yield (name, value) rows about training data that are dropped, beside their reasons."""
        yield from ()

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        """Return a problem of the model as a whole; None if there is none."""
        return None

    def card_lines(self) -> list[str]:
        """Return lines of the model card about the outputs of the model; each paragraph ends with an empty line."""
        return []

    @abstractmethod
    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        """Write plots or alignments of the predictions."""


def list_counts(counts: Counter[str]) -> str:
    """Return how often symbols or labels occur, the most common first; of many only the first ones."""
    more = f" … and {len(counts) - MAX_LISTED_COUNTS} more" if len(counts) > MAX_LISTED_COUNTS else ""
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(MAX_LISTED_COUNTS)) + more
