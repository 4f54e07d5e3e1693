"""Plots of confusion matrices, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np

from w2v_attn.training.metrics import Prediction


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
