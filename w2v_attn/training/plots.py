"""Plots of learning curves and confusion matrices, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from w2v_attn.training.metrics import Prediction


def plot_curves(history: Sequence[Mapping[str, float]], best: str, path: Path) -> None:
    """Plot losses, the validation error and the learning rate over the steps.

    Args:
        history: Trainer's log: entries with `step` and some of `loss`, `learning_rate`, `eval_loss`, `eval_<best>`.
        best: Name of the metric that selects the best checkpoint.
        path: The PNG file.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 6), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _curve(loss, history, "loss", "training loss", "tab:blue")
    _curve(loss, history, "eval_loss", "validation loss", "tab:orange")
    loss.set_ylabel("loss")
    highest = max((entry[key] for entry in history for key in ("loss", "eval_loss") if key in entry), default=1.0)
    loss.set_ylim(0, 1.05 * min(highest, _typical_height(history)))
    error = loss.twinx()
    _curve(error, history, f"eval_{best}", f"validation {best}", "tab:red")
    error.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    error.set_ylim(0, None)
    error.set_ylabel(best)
    lines = [*loss.get_lines(), *error.get_lines()]
    loss.legend(lines, [str(line.get_label()) for line in lines], loc="upper right")
    _curve(rate, history, "learning_rate", "learning rate", "tab:grey")
    rate.set_ylabel("rate")
    rate.set_xlabel("steps")
    for axes in (loss, rate):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _curve(axes: Any, history: Sequence[Mapping[str, float]], key: str, label: str, color: str) -> None:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, color=color, marker="." if len(points) < 40 else None)


def _typical_height(history: Sequence[Mapping[str, float]]) -> float:
    """Return the 98th percentile of the losses: the first losses of CTC are far above all others."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return max(float(np.quantile(losses, 0.98)), 1e-3) if losses else 1.0


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
