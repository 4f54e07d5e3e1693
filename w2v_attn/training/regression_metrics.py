"""Metrics of regressions: R² and the mean absolute error by scikit-learn, and the concordance correlation."""

import math
from collections.abc import Sequence

import numpy as np


def regression_metrics(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Return r2, ccc and mae, each the mean over outputs.

    r2 is 1 minus the ratio of the squared error to that of the mean of the references. A metric that is not defined,
    because there is one recording or all references are equal, is NaN.

    Args:
        true: float64 [recordings, outputs].
        predicted: The same shape.
    """
    return {name: float(np.mean(values)) for name, values in _measure(true, predicted).items()}


def output_metrics(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return r2_NAME, ccc_NAME and mae_NAME of each output. names: the outputs; see `regression_metrics`."""
    found = _measure(true, predicted)
    return {f"{name}_{output}": found[name][number] for number, output in enumerate(names) for name in found}


def _measure(true: np.ndarray, predicted: np.ndarray) -> dict[str, list[float]]:
    """Return each metric of each output."""
    from sklearn.metrics import mean_absolute_error, r2_score

    def r2(true: np.ndarray, predicted: np.ndarray) -> float:
        return math.nan if np.ptp(true) == 0 else float(r2_score(true, predicted))

    functions = {"r2": r2, "ccc": concordance, "mae": mean_absolute_error}
    return {name: [float(f(t, p)) for t, p in zip(true.T, predicted.T, strict=True)] for name, f in functions.items()}


def concordance(true: np.ndarray, predicted: np.ndarray) -> float:
    """Return the concordance correlation coefficient of two vectors; NaN if both are constant.

    Source: L. Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility" (1989), equation 6, with
    population variances as there, which the evaluation of emotion dimensions uses, too.
    """
    if np.ptp(true) == np.ptp(predicted) == 0:
        return math.nan
    scale = true.var() + predicted.var() + (true.mean() - predicted.mean()) ** 2
    return float(2 * ((true - true.mean()) * (predicted - predicted.mean())).mean() / scale)
