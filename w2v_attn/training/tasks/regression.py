"""One or several numbers for each recording, such as the dimensions of an emotion or a quality: squared error."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from w2v_attn.checkpoints.classification_heads import REGRESSION, are_unnamed, joined
from w2v_attn.corpus.rows import Row
from w2v_attn.training.metrics import Prediction
from w2v_attn.training.plots import plot_regression
from w2v_attn.training.regression_metrics import output_metrics, regression_metrics
from w2v_attn.training.tasks.problem import Problem
from w2v_attn.training.training_errors import DataError
from w2v_attn.transcription.outputs import Values

# The name of a number that the data do not name.
UNNAMED = "value"
# Predictions whose standard deviation is below this share of that of the references do not follow the recordings.
COLLAPSED = 0.01


class Regression(Problem):
    """Regression of one or several values, in the scale of the data.

    Args:
        names: The outputs.
        keys: The name of each output in the data; a number instead of a name is its place in a list.
        labels: The training data.
    """

    type, best_metric, target_dtype = REGRESSION, "mae", torch.float32
    function, meaning = "none", "A value for each of these outputs, in the scale of the training data."

    def __init__(self, names: Sequence[str], keys: Sequence[str], labels: Sequence[str] = ()):
        self.names, self._keys, self._labels = list(names), list(keys), labels

    @classmethod
    def of_data(cls, labels: Sequence[str], head: Sequence[str] | None) -> "Regression":
        found = _sets_of_keys(labels)
        if not found:
            raise DataError(
                f"a regression needs numbers, but {_example(labels)}. Name their columns: "
                "'data.columns={label: [arousal, valence]}'; or give a column `label` with a number, or with objects "
                'such as {"arousal": 0.4}'
            )
        keys = next(iter(found))
        if head is not None and (matched := match_outputs(head, keys)) is not None and len(keys) == len(head):
            return cls(head, matched, labels)
        in_lists = keys == _places(len(keys))
        return cls([f"LABEL_{place}" for place in keys] if in_lists else keys, keys, labels)

    @classmethod
    def of_head(cls, names: Sequence[str], labels: Sequence[str]) -> "Regression":
        found = _sets_of_keys(labels)
        if not found:
            raise DataError(f"the checkpoint gives numbers ({joined(names)}), but {_example(labels)}")
        matched = next((match for keys in found if (match := match_outputs(names, keys)) is not None), None)
        if matched is None:
            keys = next(iter(found))
            unnamed = "does not name its outputs, and has" if are_unnamed(names) else "gives"
            raise DataError(
                f"the recordings have numbers for {joined(keys)}; the checkpoint {unnamed} {joined(names)}. Expected a "
                f"number for each output: 'columns={{label: [{', '.join(names)}]}}'"
            )
        return cls(names, matched)

    def values_of(self, label: str) -> dict[str, float]:
        """Return the value of each output that the label has."""
        values = parse_values(label) or {}
        return {name: values[key] for name, key in zip(self.names, self._keys, strict=True) if key in values}

    def is_labelled(self, label: str | None) -> bool:
        return self.unusable_reason(label) is None

    def first_bias(self) -> list[float]:
        """Return the means of the training data.

        From zero, values such as -20 dB or the year 1990 would pull the encoder along before they are reached.
        """
        usable = [self.target(label) for label in self._labels if self.unusable_reason(label) is None]
        return np.mean(usable, axis=0).tolist()

    def unusable_reason(self, label: str | None) -> str | None:
        if label is None:
            return "has no label"
        values = self.values_of(label)
        if missing := [name for name in self.names if name not in values]:
            return f"has no number for {', '.join(missing)}: {label[:60]}"
        return None

    def target(self, label: str) -> list[float]:
        values = self.values_of(label)
        return [values[name] for name in self.names]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(logits.float(), targets, reduction="none").mean(-1)

    def reference(self, label: str) -> str:
        return _written(self.values_of(label))

    def hypothesis(self, found: Values) -> str:
        return _written(found.values)

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return regression_metrics(*self._arrays(predictions))

    def measure_outputs(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return output_metrics(*self._arrays(predictions), self.names) if len(self.names) > 1 else {}

    def written(self, prediction: Prediction) -> tuple[dict[str, float], dict[str, float]]:
        return self.values_of(prediction.row.label or ""), prediction.found.as_record()["values"]

    def error_of(self, prediction: Prediction) -> float:
        """Return the mean absolute error."""
        true, said = self._arrays([prediction])
        return float(np.abs(true - said).mean())

    def describe(self, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
        labels = [row.label for row in rows if row.label is not None]
        values = np.array([self.target(label) for label in labels if self.is_labelled(label)])
        for name, column in zip(self.names, values.T, strict=True):
            span = f"from {column.min():.4g} to {column.max():.4g}"
            yield name, f"{span}, mean {column.mean():.4g}, standard deviation {column.std():.4g}"
        given = Counter(key for keys, count in _sets_of_keys(self._labels).items() for key in keys * count)
        if others := [
            f"{key} ({count:,} of {len(self._labels):,})" for key, count in given.items() if key not in self._keys
        ]:
            yield "no outputs", f"{joined(others)}: most training recordings have no number for them"

    def warning(self, predictions: Sequence[Prediction]) -> str | None:
        true, said = self._arrays(predictions)
        if len(predictions) > 1 and bool(((said.std(0) < COLLAPSED * true.std(0)) & (true.std(0) > 0)).all()):
            means = _written(dict(zip(self.names, said.mean(0).tolist(), strict=True)))
            return f"every prediction is about {means}: the model has not learned to distinguish recordings"
        return None

    def report(self, predictions: Sequence[Prediction], folder: Path) -> None:
        plot_regression(*self._arrays(predictions), self.names, folder / "scatter.png")

    def _arrays(self, predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
        """Return references and predictions, float64 [recordings, outputs]."""
        true = np.array([self.target(p.row.label or "") for p in predictions])
        return true, np.array([[p.found.values[name] for name in self.names] for p in predictions])


def parse_values(label: str) -> dict[str, float] | None:
    """Return the finite numbers in a label by name; None if it has none.

    A label is a number, or JSON: an object with numbers, or a list of numbers, whose names are then "0", "1", ….
    """
    try:
        parsed = json.loads(label)
    except (ValueError, RecursionError):
        parsed = label  # such as .5, which is no JSON
    if isinstance(parsed, dict):
        pairs = parsed.items()
    elif isinstance(parsed, list):
        pairs = zip(_places(len(parsed)), parsed, strict=True)
    else:
        pairs = iter([(UNNAMED, parsed)])
    return {str(name): number for name, value in pairs if (number := _number(value)) is not None} or None


def match_outputs(names: Sequence[str], keys: Sequence[str]) -> list[str] | None:
    """Return the name in the data of each output of a head; None if it is not clear.

    Names in the data are those of the outputs, or places in a list with a number for each output. A single number is
    that of a single output, whatever the two are called, if one of them has no name.
    """
    if set(names) <= set(keys):
        return list(names)
    if tuple(keys) == _places(len(names)):
        return list(keys)
    if len(names) == len(keys) == 1 and (keys[0] == UNNAMED or are_unnamed(names)):
        return list(keys)
    return None


def _sets_of_keys(labels: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Return the sets of names that labels have numbers for, in the order of the first label, and how many have them.

    The most common set is the first one.
    """
    written: dict[frozenset[str], tuple[str, ...]] = {}
    found: Counter[frozenset[str]] = Counter()
    for label in labels:
        if values := parse_values(label):
            written.setdefault(frozenset(values), tuple(values))
            found[frozenset(values)] += 1
    return {written[keys]: count for keys, count in found.most_common()}


def _places(count: int) -> tuple[str, ...]:
    """Return the names of the numbers in a list."""
    return tuple(map(str, range(count)))


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _written(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _example(labels: Sequence[str]) -> str:
    return f"the first label is {labels[0][:60]!r}" if labels else "no recording has a label"
