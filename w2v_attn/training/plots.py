"""Plots of confusion matrices, the metrics of labels, and regressions, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np

from w2v_attn.training.metrics import Prediction
from w2v_attn.training.multi_label_metrics import LabelMetrics
from w2v_attn.training.regression_metrics import concordance

MAX_PANELS = 12


def plot_confusions(predictions: Sequence[Prediction], labels: Sequence[str], path: Path) -> None:
    """Plot the confusion matrix: rows are references, columns hypotheses, colours shares of a row, numbers counts."""
    number = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), int)
    for prediction in predictions:
        if prediction.reference in number and prediction.hypothesis in number:
            counts[number[prediction.reference], number[prediction.hypothesis]] += 1
    size = max(4.0, 0.45 * len(labels) + 2)
    figure = matplotlib.figure.Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("hypothesis")
    axes.set_ylabel("reference")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = count > 0.5 * counts[row].sum()
            axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_label_metrics(measured: Sequence[LabelMetrics], path: Path) -> None:
    """Plot the F1 score and the average precision of each label as bars, the most frequent label on top."""
    ordered = sorted(measured, key=lambda one: one.recordings)
    figure = matplotlib.figure.Figure(figsize=(8, max(3.0, 0.35 * len(ordered) + 1.5)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(ordered))
    axes.barh(places + 0.2, [one.f1 for one in ordered], 0.4, label="F1", color="tab:blue")
    precisions = [one.average_precision for one in ordered]
    axes.barh(places - 0.2, precisions, 0.4, label="average precision", color="tab:orange")
    axes.set_yticks(places, [f"{one.label} ({one.recordings:,})" for one in ordered])
    axes.set_xlim(0, 1)
    axes.set_xlabel("0 to 1; in brackets: recordings with the label")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=120)


def plot_regression(true: np.ndarray, predicted: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Plot predictions over references, one panel for each output; on the diagonal they are equal.

    Args:
        true: float64 [recordings, outputs].
        predicted: The same shape.
        names: The outputs; of more than `MAX_PANELS` only the first ones are plotted.
        path: The PNG file.
    """
    panels = min(len(names), MAX_PANELS)
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = matplotlib.figure.Figure(figsize=(4 * columns, 4 * rows), layout="constrained")
    for number, axes in zip(range(panels), figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        x, y = true[:, number], predicted[:, number]
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        axes.plot([low, high], [low, high], color="tab:grey", linewidth=1)
        axes.scatter(x, y, s=12, alpha=0.5, color="tab:blue")
        axes.set_title(f"{names[number]}: CCC {concordance(x, y):.2f}")
        axes.set_xlabel("reference")
        axes.set_ylabel("prediction")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.3)
    for axes in figure.axes[panels:]:
        axes.remove()
    figure.savefig(path, dpi=120)
