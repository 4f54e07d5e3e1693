"""What two ways of computing left, line by line against the bounds."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from w2v_attn.verification import bounds
from w2v_attn.verification.figures import compare, distance, largest
from w2v_attn.verification.report import Comparison
from w2v_attn.verification.runners import Climb

# Stage -> a tensor for each recording.
Stages = Mapping[str, Sequence[Tensor]]


def compare_stages(dtype: str, side: str, ours: Stages, theirs: Stages, exact: Stages) -> Iterator[Comparison]:
    """A line for each stage that ours shows, in the order of computation."""
    for stage in exact:
        if stage in ours:
            found = compare(ours[stage], theirs[stage], exact[stage])
            checks = bounds.check_stage(dtype, found)
            yield Comparison(dtype=dtype, side=side, kind="stage", stage=stage, checks=checks, figures=found)


def compare_gradients(
    dtype: str, side: str, ours: Climb, theirs: Climb, exact: Climb, places: Mapping[str, tuple[str, str]]
) -> Iterator[Comparison]:
    """A line for each parameter, in the order of the backward. places: see `ladder`.

    A gradient that ours has not is infinitely far from stock's, and one that stock has not breaks its bound.
    """
    scales: dict[str, float] = {}
    for name in exact.order:
        module = _module(name)
        scales[module] = max(scales.get(module, 0.0), largest(exact.gradients[name]))
    for name in exact.order:
        found = compare(*([c.gradients[name]] if name in c.gradients else [] for c in (ours, theirs, exact)))
        checks = bounds.check_gradient(dtype, found, scales[_module(name)])
        stage, part = places[name]
        yield Comparison(dtype=dtype, side=side, kind="gradient", stage=stage, part=part, checks=checks, figures=found)
    for name in ours.gradients.keys() - exact.gradients.keys():
        stage, part = places[name]
        checks = (bounds.Check("gradients that stock has not", 1.0, 0.0),)
        yield Comparison(dtype=dtype, side=side, kind="gradient", stage=stage, part=part, checks=checks)


def compare_symbols(side: str, ours: Stages, theirs: Stages, exact: Stages) -> Comparison:
    """Whether every frame has the same likeliest symbol, in float32, from logits [T, symbols].

    Where two symbols are so near in float64 that stock's own error decides between them, either is right.
    """
    different = 0
    error, _ = distance(theirs["logits"], exact["logits"])
    for our, their, true in zip(ours["logits"], theirs["logits"], exact["logits"], strict=True):
        first, second = true.topk(2).values.unbind(-1)
        different += int(((our.argmax(-1) != their.argmax(-1)) & (first - second > 2 * error)).sum())
    checks = bounds.check_symbols(different)
    return Comparison(dtype="float32", side=side, kind="symbols", stage="logits", checks=checks)


def compare_batch(order: str, together: Stages, alone: Stages, theirs: Stages, exact: Stages) -> Iterator[Comparison]:
    """A line for each layer that was extracted from recordings together and alone. order: of those, in words."""
    for stage in together:
        error, _ = distance(theirs[stage], exact[stage])
        difference, _ = distance(together[stage], alone[stage])
        checks = bounds.check_batch(difference, error)
        yield Comparison(dtype="float32", side="extract", kind="batch", stage=stage, part=order, checks=checks)


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
