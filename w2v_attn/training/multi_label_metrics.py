"""Metrics of recordings with any number of labels, by scikit-learn."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from w2v_attn.transcription.outputs import Labels


class LabelMetrics(NamedTuple):
    """The metrics of one label, 0 to 1, and the number of recordings that have it."""

    label: str
    recordings: int
    precision: float
    recall: float
    f1: float
    average_precision: float


def multi_label_metrics(
    references: Sequence[Sequence[str]], found: Sequence[Labels], names: Sequence[str]
) -> dict[str, float]:
    """Return micro_f1, macro_f1, map (mean average precision), error = 1 − map, and exact, the share of equal sets.

    micro_f1 counts each label of each recording once. macro_f1 and map are means over labels: macro_f1 over those that
    occur in references or predictions, map over those that occur in references, since the average precision of others
    is not defined; without any, map is 0. map does not depend on the threshold.

    Args:
        references: The labels of each recording.
        found: The predictions.
        names: The outputs of the head. Other labels in references are never predicted.
    """
    from sklearn.metrics import accuracy_score, f1_score

    true, said, _, _ = _arrays(references, found, names)
    occurs = np.flatnonzero((true | said).any(0))
    measured = label_metrics(references, found, names)
    precisions = [one.average_precision for one in measured if one.recordings]
    mean = float(np.mean(precisions)) if precisions else 0.0
    return {
        "micro_f1": float(f1_score(true, said, average="micro")) if len(occurs) else 1.0,
        "macro_f1": float(f1_score(true, said, labels=occurs, average="macro")) if len(occurs) else 1.0,
        "map": mean,
        "error": 1 - mean,
        "exact": float(accuracy_score(true, said)),
    }


def label_metrics(
    references: Sequence[Sequence[str]], found: Sequence[Labels], names: Sequence[str]
) -> list[LabelMetrics]:
    """Return the metrics of each label, in the order of the outputs. Arguments: see `multi_label_metrics`."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    true, said, scores, every = _arrays(references, found, names)
    undefined: Any = 0.0  # scikit-learn's stubs know only its strings
    columns: Any = precision_recall_fscore_support(true, said, average=None, zero_division=undefined)
    measured: list[LabelMetrics] = []
    for n, name in enumerate(every):
        precision, recall, f1 = (float(column[n]) for column in columns[:3])
        average = float(average_precision_score(true[:, n], scores[:, n])) if true[:, n].any() else 0.0
        measured.append(LabelMetrics(name, int(true[:, n].sum()), precision, recall, f1, average))
    return measured


def write_label_metrics(
    references: Sequence[Sequence[str]], found: Sequence[Labels], names: Sequence[str], path: Path
) -> list[LabelMetrics]:
    """Write the metrics of each label as CSV and return them. Arguments: see `multi_label_metrics`."""
    measured = label_metrics(references, found, names)
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(LabelMetrics._fields)
        for one in measured:
            writer.writerow([one.label, one.recordings, *(f"{value:.4f}" for value in one[2:])])
    return measured


def _arrays(
    references: Sequence[Sequence[str]], found: Sequence[Labels], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return (references, predictions, scores) as [recordings, labels + 1], and the names of the labels.

    The last label never occurs: scikit-learn takes arrays of one column for two exclusive classes.
    """
    every = list(dict.fromkeys([*names, *sorted({name for labels in references for name in labels})]))
    true = np.array([[*(name in labels for name in every), False] for labels in map(set, references)])
    said = np.array([[*(name in labels for name in every), False] for labels in (set(one.labels) for one in found)])
    scores = np.array([[*(one.scores.get(name, 0.0) for name in every), 0.0] for one in found])
    return true, said, scores, every
