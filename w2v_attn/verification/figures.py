"""How far tensors are apart, and how far both are from float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Ours, stock's and the exact value of one stage, over all recordings; infinite where ours has another shape.

    largest, norm, count: of the exact value: the largest magnitude, the L2 norm, and how many numbers it has.
    max_abs, relative_l2: of ours minus stock's, the latter over `norm`.
    our_max, our_l2, their_max, their_l2: the same of ours and of stock's minus the exact value.
    """

    largest: float
    norm: float
    count: int
    max_abs: float
    relative_l2: float
    our_max: float
    our_l2: float
    their_max: float
    their_l2: float


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]) -> Figures:
    """The figures of one stage, a tensor for each recording. exact: by stock in float64."""
    same_shapes = [x.shape for x in ours] == [x.shape for x in exact]
    squares = sum(x.double().square().sum().item() for x in exact)
    max_abs, relative_l2 = _distance(ours, theirs, squares) if same_shapes else (inf, inf)
    our_max, our_l2 = _distance(ours, exact, squares) if same_shapes else (inf, inf)
    their_max, their_l2 = _distance(theirs, exact, squares)
    return Figures(
        largest=max(largest(x) for x in exact),
        norm=sqrt(squares),
        count=sum(x.numel() for x in exact),
        max_abs=max_abs,
        relative_l2=relative_l2,
        our_max=our_max,
        our_l2=our_l2,
        their_max=their_max,
        their_l2=their_l2,
    )


def largest(x: Tensor) -> float:
    """The largest magnitude in x; 0 where there is nothing in it."""
    return x.abs().max().item() if x.numel() else 0.0


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """(max abs difference, L2 norm of the difference over that of theirs); infinite where shapes differ."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return inf, inf
    return _distance(ours, theirs, sum(x.double().square().sum().item() for x in theirs))


def _distance(left: Sequence[Tensor], right: Sequence[Tensor], squares: float) -> tuple[float, float]:
    most, total = 0.0, 0.0
    for one, other in zip(left, right, strict=True):
        difference = one.double() - other.double()
        if not bool(torch.isfinite(difference).all()):
            return inf, inf
        most = max(most, largest(difference))
        total += difference.square().sum().item()
    if total == 0:
        return most, 0.0
    return most, sqrt(total / squares) if squares else inf
