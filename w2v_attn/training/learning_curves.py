"""`plot_curves`: the losses, the validation error and the learning rate of a training, as a PNG file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.ticker
import numpy as np

SHARES = ("wer", "cer", "error", "accuracy")  # shown in percent
SMOOTHED_FROM = 60  # points; below that, single ones can be told apart
LOGARITHMIC_FROM = 10  # ratio of the highest loss to a typical low one
Points = tuple[np.ndarray, np.ndarray]


def plot_curves(history: Sequence[Mapping[str, float]], best: str, path: Path) -> None:
    """Plot losses, the validation error and the learning rate over the steps, one above the other.

    The scale of the losses is logarithmic where the first ones are far above the last ones, as those of CTC are. Values
    that are not finite are left out.

    Args:
        history: Trainer's log: entries with `step` and some of `loss`, `learning_rate`, `eval_loss`, `eval_<best>`.
        best: Name of the metric that selects the best checkpoint.
        path: The PNG file.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 7), layout="constrained")
    loss, error, rate = figure.subplots(3, 1, sharex=True, height_ratios=(5, 3, 2))
    _plot_losses(loss, _points(history, "loss"), _points(history, "eval_loss"))
    _line(error, _points(history, f"eval_{best}"), f"validation {best}", "tab:red")
    error.set_ylabel(f"validation {best}")
    if best in SHARES:
        error.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        error.set_ylim(bottom=0)
    _line(rate, _points(history, "learning_rate"), "learning rate", "tab:grey")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    rate.set_xlabel("steps")
    rate.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for axes in (loss, error, rate):
        axes.grid(alpha=0.3)
    figure.align_ylabels()
    figure.savefig(path, dpi=120)


def _plot_losses(axes: Any, training: Points, validation: Points) -> None:
    """Plot both losses, with their names above the plot, where no line is."""
    steps, losses = training
    is_smoothed = len(losses) >= SMOOTHED_FROM
    _line(axes, training, "training loss", "tab:blue", faint=is_smoothed)
    if is_smoothed:
        _line(axes, (steps, _smooth(losses)), "training loss, smoothed", "tab:blue")
    _line(axes, validation, "validation loss", "tab:orange")
    axes.set_ylabel("loss")
    every = np.concatenate([losses, validation[1]])
    if len(every) and every.min() > 0 and every.max() > LOGARITHMIC_FROM * np.quantile(every, 0.1):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    elif len(every) and every.min() >= 0:
        axes.set_ylim(bottom=0)
    if axes.get_lines():
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0)


def _points(history: Sequence[Mapping[str, float]], key: str) -> Points:
    """Return the steps and the values of a key, where they are finite."""
    found = [(entry["step"], entry[key]) for entry in history if key in entry and math.isfinite(entry[key])]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], float)


def _line(axes: Any, points: Points, label: str, color: str, *, faint: bool = False) -> None:
    steps, values = points
    if len(values):
        marker = "." if len(values) < 40 else None
        style = {"alpha": 0.3, "linewidth": 0.8} if faint else {"linewidth": 1.6}
        axes.plot(steps, values, label=label, color=color, marker=marker, **style)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the median over the values around each one: a fortieth of all of them, fewer at both ends."""
    half = max(len(values) // 80, 2)
    return np.array(
        [
            np.median(values[max(0, i - min(i, half)) : i + min(len(values) - 1 - i, half) + 1])
            for i in range(len(values))
        ]
    )
