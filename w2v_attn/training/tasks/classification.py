"""Classification and regression of whole recordings: keywords, speakers, emotions, languages, quality."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.classification_heads import (
    CLASSIFIER,
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    given_problem_type,
    joined,
    output_names,
    problem_type_of,
)
from w2v_attn.checkpoints.dense_classifiers import SUFFIX
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.pooled_classifiers import POOLINGS
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.options import ClassificationOptions
from w2v_attn.training.tasks.multi_label import MultiLabel
from w2v_attn.training.tasks.notation import has_decimals, is_empty, is_missing, number_of, parsed
from w2v_attn.training.tasks.problem import Problem
from w2v_attn.training.tasks.regression import Regression, parse_values
from w2v_attn.training.tasks.single_label import SingleLabel
from w2v_attn.training.tasks.task import Task
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.classifier import Classifier, check_threshold
from w2v_attn.transcription.recognizer import Recognizer

LAYERS = ("last", "weighted")
PROBLEMS: dict[str, type[Problem]] = {problem.type: problem for problem in (SingleLabel, MultiLabel, Regression)}
# What a new head has where the options leave it open.
NEW_HEAD = {"pooling": "mean", "layers": "last", "width": 256}
# The share of labels from which on the others are taken for mistakes.
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Head:
    """The classification head of a checkpoint.

    Attributes:
        names: Its outputs.
        problem_type: As in the config, or what follows from the number of outputs; a given one if the config has one
            that is not known.
        stated: Whether the config states the problem type.
        structure: The values of the options pooling, layers and width that it was made with; None: it has another one.
    """

    names: list[str]
    problem_type: str
    stated: bool
    structure: dict[str, Any] | None

    @classmethod
    def of(cls, checkpoint: Checkpoint | None, given: str | None = None) -> "Head | None":
        """Return the head of a checkpoint; None if it does not classify recordings. given: the problem type, if known.

        Raises:
            CheckpointError: The config has an unknown problem type, and none is given.
        """
        if checkpoint is None or not type(checkpoint.model).__name__.endswith(CLASSIFIER):
            return None
        config = checkpoint.model.config
        structure = {
            "pooling": getattr(config, "pooling", "mean"),
            "layers": "weighted" if config.use_weighted_layer_sum else "last",
            "width": config.classifier_proj_size,
        }
        is_dense = SUFFIX in type(checkpoint.model).__name__
        if given is not None and config.problem_type not in (None, *PROBLEM_TYPES):
            type_, stated = given, False
        else:
            type_, stated = problem_type_of(config, key="task.problem_type"), config.problem_type is not None
        return cls(output_names(config), type_, stated, None if is_dense else structure)


class Classification(Task):
    """Classification or regression of recordings.

    Args:
        names: The outputs, in the order of their numbers; or a problem.
        options: The options of the task; those that are None are as in `NEW_HEAD`.
        keeps_head: Whether the head of the checkpoint is kept.
        head_reason: Why the head is kept or new, for people.
        notes: Rows (name, value) for the report before training.
    """

    name, head, pipeline = "classification", CLASSIFIER, "audio-classification"

    def __init__(
        self,
        names: Sequence[str] | Problem,
        options: ClassificationOptions,
        *,
        keeps_head: bool = False,
        head_reason: str = "",
        notes: Sequence[tuple[str, str]] = (),
    ):
        self.problem = names if isinstance(names, Problem) else SingleLabel(names)
        self.keeps_head, self.head_reason, self._notes = keeps_head, head_reason, tuple(notes)
        self._options = options
        self.pooling = options.pooling or NEW_HEAD["pooling"]
        self.best_metric, self.target_dtype = self.problem.best_metric, self.problem.target_dtype
        self.pipeline_arguments = f', top_k=None, function_to_apply="{self.problem.function}"'

    @classmethod
    def from_data(
        cls, options: ClassificationOptions, train: Sequence[Row], checkpoint: Checkpoint | None
    ) -> "Classification":
        """Return the task for training rows; a head of the checkpoint is kept if its outputs are those of the data.

        Raises:
            DataError: An option is invalid, or the labels of the rows cannot be used.
        """
        given = _checked(options)
        labels = [row.label for row in train if row.label is not None]
        head = Head.of(checkpoint, given)
        problem, source = _problem(given, labels, head)
        new = _why_new(options, problem, head, given)
        notes = [("problem", f"{problem.type} ({source})")]
        if head is None:
            return cls(problem, options, notes=notes)
        if new is not None:
            return cls(problem, options, head_reason=f"new: {new}; it starts from random weights", notes=notes)
        reason = f"the checkpoint's, kept: {joined(head.names)}"
        structure = head.structure or {}
        return cls(
            problem,
            ClassificationOptions(**{**vars(options), **structure}),
            keeps_head=True,
            head_reason=reason,
            notes=notes,
        )

    @classmethod
    def from_recognizer(cls, recognizer: Classifier, rows: Sequence[Row]) -> "Classification":
        """Return the task that a checkpoint was trained for, to be measured on these rows.

        Raises:
            DataError: No row has a label, or no label is one of the checkpoint.
        """
        labels = [row.label for row in rows if row.label is not None]
        if not labels:
            raise DataError(
                "no recording has a label: expected a folder with a sub-folder for each label, or a column `label`"
                + (f", or columns {joined(recognizer.names)}" if recognizer.problem_type == REGRESSION else "")
            )
        problem = PROBLEMS[recognizer.problem_type].of_head(recognizer.names, labels)
        options = ClassificationOptions(problem_type=recognizer.problem_type, threshold=recognizer.threshold)
        return cls(problem, options, keeps_head=True)

    def config_changes(self) -> dict[str, Any]:
        names, options = self.problem.names, self._options
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": self.problem.type,
            "classifier_proj_size": options.width or NEW_HEAD["width"],
            "use_weighted_layer_sum": (options.layers or NEW_HEAD["layers"]) == "weighted",
        }

    def initialize_head(self, model: Any) -> None:
        if (bias := self.problem.first_bias()) is not None:
            classifier = model.classifier if self.pooling == "mean" else model.pooled_classifier
            with torch.no_grad():
                classifier.bias.copy_(torch.tensor(bias))

    def reference(self, row: Row) -> str:
        return "" if row.label is None else self.problem.reference(row.label)

    def target(self, row: Row) -> list[Any]:
        return self.problem.target(row.label or "")

    def is_labelled(self, row: Row) -> bool:
        return self.problem.is_labelled(row.label)

    def unusable_reason(self, row: Row, frames: int) -> str | None:
        return self.problem.unusable_reason(row.label)

    def losses(self, logits: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        return self.problem.losses(logits, labels)

    def recognizer(self, checkpoint: Checkpoint, device: torch.device, backend: str) -> Recognizer:
        return Classifier(checkpoint, threshold=self._options.threshold, device=device, backend=backend)

    def hypothesis(self, found: Any) -> str:
        return self.problem.hypothesis(found)

    def written(self, prediction: Prediction) -> tuple[Any, Any]:
        return self.problem.written(prediction)

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return self.problem.measure(predictions)

    def measure_outputs(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return self.problem.measure_outputs(predictions)

    def error_of(self, prediction: Prediction) -> float:
        return self.problem.error_of(prediction)

    def symbols(self) -> list[str]:
        return self.problem.names

    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        yield from self._notes
        yield from self.problem.describe(rows)

    def classes(self, rows: Sequence[Row]) -> list[str]:
        return self.problem.classes(rows)

    def save(self, folder: Path) -> None:
        """Write nothing: the outputs are in the config."""

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        return self.problem.warning(predictions)

    def card_lines(self) -> list[str]:
        """Return what the outputs are, and what to know of transformers' loss."""
        names = ", ".join(f"`{name}`" for name in self.problem.names)
        lines = [f"{self.problem.meaning} The outputs are {names} (problem type `{self.problem.type}`).", ""]
        if self.problem.type == MULTI_LABEL:
            lines[0] += f" Metrics below are those at a threshold of {self._options.threshold:g}."
        if self.problem.type != SINGLE_LABEL:
            lines[0] += " The `loss` that the model itself computes is a cross entropy: do not train it with that."
        return lines

    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        self.problem.report(predictions, folder)


def _checked(options: ClassificationOptions) -> str | None:
    """Return the problem type of the options, None for `auto`; raise DataError if an option is invalid."""
    for key, value, choices in (("pooling", options.pooling, POOLINGS), ("layers", options.layers, LAYERS)):
        if value is not None and value not in choices:
            raise DataError(f"task.{key} must be one of {', '.join(choices)}, got {value}")
    try:
        check_threshold(options.threshold)
        return given_problem_type(options.problem_type, "task.problem_type")
    except ValueError as error:
        raise DataError(str(error).replace("threshold must", "task.threshold must")) from error


def _problem(given: str | None, labels: Sequence[str], head: Head | None) -> tuple[Problem, str]:
    """Return the problem of labels and where its type is known from: the options, the checkpoint, or the data."""
    if given is not None:
        return PROBLEMS[given].of_data(labels, None if head is None else head.names), "task.problem_type"
    if head is not None:
        try:
            problem = PROBLEMS[head.problem_type].of_data(labels, head.names)
        except DataError:
            pass  # such as words for a regression: the type then follows from the data
        else:
            if problem.names == head.names:
                return problem, "as the checkpoint"
    type, reason = type_of_labels(labels)
    return PROBLEMS[type].of_data(labels, None if head is None else head.names), reason


def type_of_labels(labels: Sequence[str]) -> tuple[str, str]:
    """Return (problem type, reason) of labels; those that hold nothing have no say.

    JSON objects of values are a regression, unless all values are 0 or 1: then they say which labels a recording has.
    JSON lists are several labels, unless they hold numbers with decimals. Strings are one label each, unless all are
    numbers and one has decimals, or nearly all are numbers with decimals.
    """
    filled = [label for label in labels if not is_empty(label)] or labels
    if _are_written(filled, dict):
        objects = [found for label in filled if isinstance(found := parsed(label), dict)]
        numbers = [number for found in objects for value in found.values() if (number := number_of(value)) is not None]
        if numbers and set(numbers) <= {0.0, 1.0}:
            return MULTI_LABEL, "each label is 0 or 1; if they are values, say task.problem_type=regression"
        return REGRESSION, "the labels are named values"
    if _are_written(filled, list):
        lists = [[item for item in found if not is_missing(item)] for label in filled if (found := parsed(label))]
        values = [parse_values(json.dumps(items)) or {} for items in lists]
        are_values = [len(found) == len(items) for found, items in zip(values, lists, strict=True)]
        decimals = any(not number.is_integer() for found in values for number in found.values())
        if decimals and sum(are_values) >= NEARLY_ALL * len(lists):
            return REGRESSION, "the labels are lists of values"
        return MULTI_LABEL, "the labels are lists; if they are values, say task.problem_type=regression"
    numbers = [number for label in filled for number in (parse_values(label) or {}).values()]
    has_fractions = any(not number.is_integer() for number in numbers)
    are_numbers = bool(numbers) and all(parse_values(label) for label in filled)
    nearly_all = sum(map(has_decimals, filled)) >= NEARLY_ALL * len(filled)
    if has_fractions and (nearly_all or (are_numbers and len(filled) == len(labels))):
        return REGRESSION, "the labels are numbers with decimals; if they are classes, say task.problem_type=single"
    if are_numbers and not has_fractions:
        return SINGLE_LABEL, "whole numbers are taken as classes; if they are values, say task.problem_type=regression"
    return SINGLE_LABEL, "one label for each recording"


def _are_written(labels: Sequence[str], kind: type) -> bool:
    """Return whether labels are JSON objects or lists: all look like it, or most can be read as such."""
    sign = "{" if kind is dict else "["
    if labels and all(label.lstrip().startswith(sign) for label in labels):
        return True
    return 2 * sum(isinstance(parsed(label), kind) for label in labels) > len(labels)


def _why_new(options: ClassificationOptions, problem: Problem, head: Head | None, given: str | None) -> str | None:
    """Return why the head of the checkpoint cannot be kept; None if it can, or if there is none."""
    if head is None:
        return None
    if head.structure is None:
        return "the checkpoint's head has a dense layer of its own, which transformers does not have"
    if problem.names != head.names:
        return f"the checkpoint's outputs are {joined(head.names)}, the data's are {joined(problem.names)}"
    if problem.type != head.problem_type and (head.stated or REGRESSION in (problem.type, head.problem_type)):
        return f"the checkpoint's head is for {head.problem_type}, not for {problem.type}"
    for key, value in head.structure.items():
        asked = getattr(options, key)
        if asked is not None and asked != value:
            return f"the checkpoint's head has {key}={value}, not {asked} (leave out task.{key} to keep it)"
    return None
