"""Comparisons of ours with stock: one for each stage, gradient, batch or symbol, with its bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor

from w2v_attn.verification import bounds
from w2v_attn.verification.bounds import Check, StageErrors, distance, largest, measure_errors
from w2v_attn.verification.runners import Trace

# Name of the stage -> a tensor for each recording.
Stages = Mapping[str, Sequence[Tensor]]
# The check of a quantity that is reported without a bound.
UNBOUNDED = Check("no bound", 0.0, inf)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One line of the report: ours against stock's.

    Attributes:
        dtype: Dtype of the computation.
        side: What was computed; see `report.SIDES`.
        kind: What was compared; see `report.KINDS`.
        stage: Name of the stage.
        checks: The bounds.
        figures: Errors; None where only the checks are meaningful.
        part: Part of the stage: a parameter, or an order of the recordings.
    """

    dtype: str
    side: str
    kind: str
    stage: str
    checks: tuple[Check, ...]
    figures: StageErrors | None = None
    part: str | None = None

    @property
    def holds(self) -> bool:
        """Whether all its bounds hold."""
        return all(check.holds for check in self.checks)

    @property
    def worst(self) -> Check:
        """The check with the largest value relative to its limit."""
        return max(self.checks, key=lambda check: check.share, default=UNBOUNDED)

    @property
    def name(self) -> str:
        """Stage and part."""
        return self.stage if self.part is None else f"{self.stage} {self.part}"


def compare_stages(dtype: str, side: str, ours: Stages, theirs: Stages, exact: Stages) -> Iterator[Comparison]:
    """Yield a comparison for each stage of ours, in the order of computation."""
    for stage in exact:
        if stage in ours:
            found = measure_errors(ours[stage], theirs[stage], exact[stage])
            checks = bounds.check_stage(dtype, found)
            yield Comparison(dtype=dtype, side=side, kind="stage", stage=stage, checks=checks, figures=found)


def compare_gradients(
    dtype: str, side: str, ours: Trace, theirs: Trace, exact: Trace, places: Mapping[str, tuple[str, str]]
) -> Iterator[Comparison]:
    """Yield a comparison for each parameter, in the order of the backward.

    A gradient that is missing in ours has an infinite error, and one that is missing in stock's breaks its bound.

    Args:
        places: See `stages.stages_of_parameters`.
    """
    scales: dict[str, float] = {}
    for name in exact.order:
        module = _module(name)
        scales[module] = max(scales.get(module, 0.0), largest(exact.gradients[name]))
    for name in exact.order:
        found = measure_errors(*([c.gradients[name]] if name in c.gradients else [] for c in (ours, theirs, exact)))
        checks = bounds.check_gradient(dtype, found, scales[_module(name)])
        stage, part = places[name]
        yield Comparison(dtype=dtype, side=side, kind="gradient", stage=stage, part=part, checks=checks, figures=found)
    for name in ours.gradients.keys() - exact.gradients.keys():
        stage, part = places[name]
        checks = (bounds.Check("gradients that stock has not", 1.0, 0.0),)
        yield Comparison(dtype=dtype, side=side, kind="gradient", stage=stage, part=part, checks=checks)


def compare_symbols(side: str, ours: Stages, theirs: Stages, exact: Stages) -> Comparison:
    """Return the comparison of the most likely symbol of every frame, from float32 logits [T, symbols].

    If two symbols are so close in float64 that stock's error decides between them, either is correct.
    """
    different = 0
    error, _ = distance(theirs["logits"], exact["logits"])
    for our, their, true in zip(ours["logits"], theirs["logits"], exact["logits"], strict=True):
        first, second = true.topk(2).values.unbind(-1)
        different += int(((our.argmax(-1) != their.argmax(-1)) & (first - second > 2 * error)).sum())
    checks = bounds.check_symbols(different)
    return Comparison(dtype="float32", side=side, kind="symbols", stage="logits", checks=checks)


def compare_batch(order: str, batched: Stages, alone: Stages, theirs: Stages, exact: Stages) -> Iterator[Comparison]:
    """Yield a comparison for each layer, extracted in a batch and alone. order: of the recordings, in words."""
    for stage in batched:
        error, _ = distance(theirs[stage], exact[stage])
        difference, _ = distance(batched[stage], alone[stage])
        checks = bounds.check_batch(difference, error)
        yield Comparison(dtype="float32", side="extract", kind="batch", stage=stage, part=order, checks=checks)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
