"""What every task says about itself. A new one is a file beside this one, a line in choice.py, and conf/task/."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.recognizer import Recognizer


class Task(ABC):
    """name: as in `task=`. head: what stock's classes with its head end in. best: the metric that chooses the best
    checkpoint, where less is better. pipeline: stock's name of it. keeps_head: what the numbers of the checkpoint's
    head mean is what they mean here.
    pooling: of frames, where the head pools them.
    """

    name: str
    head: str
    best_metric: str
    pipeline: str
    keeps_head: bool = False
    pooling: str = "mean"

    @abstractmethod
    def config_changes(self) -> dict[str, Any]:
        """Values of the model's config that follow from the task."""

    @abstractmethod
    def reference(self, row: Row) -> str:
        """What the model should say of a recording."""

    @abstractmethod
    def target(self, row: Row) -> list[int]:
        """The same as numbers."""

    @abstractmethod
    def is_labelled(self, row: Row) -> bool:
        """Whether there is something to compare with."""

    @abstractmethod
    def unusable_reason(self, row: Row, frames: int) -> str | None:
        """Why a recording of so many frames cannot be trained on; None where it can."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        """float32 [B], of each recording.

        logits: what the head gives. labels: int64 [B, L], padded with -100. frames: int64 [B], real ones of each.
        """

    @abstractmethod
    def recognizer(self, checkpoint: Checkpoint, device: torch.device, backend: str) -> Recognizer:
        """What turns waveforms into what the model says of them."""

    @abstractmethod
    def hypothesis(self, found: Any) -> str:
        """What the model said, in the form of `reference`."""

    @abstractmethod
    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics, `best` among them."""

    @abstractmethod
    def error_of(self, prediction: Prediction) -> float:
        """How wrong one prediction is; 0 is right."""

    @abstractmethod
    def symbols(self) -> Sequence[str]:
        """What the head can say, in the order of its numbers."""

    @abstractmethod
    def counts(self, rows: Sequence[Row]) -> Counter[str]:
        """What is to be learned, and how often it occurs: symbols or labels."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what the model needs beside its weights and its preprocessor."""

    def classes(self, rows: Sequence[Row]) -> list[str]:
        """The class of each recording.

        Raises:
            DataError: the task has no classes.
        """
        raise DataError(f"data.balance=true needs classes, task={self.name} has none")

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        """What is wrong with a model as a whole, where something is."""
        return None

    @abstractmethod
    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        """Writes the predictions in the forms that suit the task."""
