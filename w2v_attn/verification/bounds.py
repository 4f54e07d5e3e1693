"""Errors of this package (ours) and of stock transformers, and the bounds that they must not exceed.

| what | bound |
|---|---|
| float32 | at most 1e-4 from stock, and an error against float64 of at most 2 × stock's own |
| float64 | at most 1e-10 from stock |
| bfloat16 | a relative L2 error against float64 of at most 1.1 × stock's own; gradients are reported without a bound |
| gradients | as the forward, for each parameter |
| a batch, and its order | features at most 1e-5 from those of a recording alone, in float32 |
| CTC | the same most likely symbol in every frame, in float32 |

1e-4 and 1e-5 are absolute, and the frames of a real checkpoint can be in the thousands, where one float32 step is 2e-4.
So the bounds grow with the largest error e of stock's float32 against float64: two results with errors of at most 3 e
and e differ by up to 4 e; a recording in a batch and alone, with errors of e each, by up to 2 e. If e is small, the
numbers of the table apply.

The factor 2 bounds the relative L2 error, an average over all numbers. The largest error is that of one number among
thousands and fluctuates more: where the former was 1.0 and 1.5 times stock's, the latter was 1.1 and 1.9 times. It may
be 3 times stock's.

The factors need a floor where e is small by chance. A stage has thousands of numbers, so chance matters only where
nothing but the input is rounded: STAGE_ROUNDINGS of it are allowed. A gradient can consist of a dozen sums over all
frames: two correct float32 computations of such a gradient had errors of 10 and 49 roundings, hence GRADIENT_ROUNDINGS.
The size of a rounding is that of the largest number among the gradients of the module: the gradient of a bias sums the
factors whose products the gradient of a weight sums, and where signs cancel, as they do for the bias of keys, which has
no effect on softmax, little but the rounding errors of all summands is left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

FLOAT32, FLOAT64 = 1e-4, 1e-10
# Bounds on our error against float64 over stock's: of the relative L2 error, and of the largest error in float32.
FLOAT32_RATIO, BFLOAT16_RATIO, MAX_ABS_RATIO = 2.0, 1.1, 3.0
# The bound on the difference of two results, one with MAX_ABS_RATIO times stock's largest error, the other with it.
MAX_DISTANCE_RATIO = MAX_ABS_RATIO + 1.0
BATCH = 1e-5
STAGE_ROUNDINGS, GRADIENT_ROUNDINGS = 4, 64


@dataclass(frozen=True, kw_only=True)
class StageErrors:
    """Errors of one stage over all recordings; infinite if ours has another shape.

    Attributes:
        largest: Largest magnitude in the exact value.
        norm: L2 norm of the exact value.
        count: Number of entries of the exact value.
        max_abs: Largest absolute difference between ours and stock's.
        relative_l2: L2 norm of that difference over `norm`.
        our_max: Largest absolute error of ours against the exact value.
        our_l2: Relative L2 error of ours.
        their_max: Largest absolute error of stock's.
        their_l2: Relative L2 error of stock's.
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


def measure_errors(ours: Sequence[Tensor], theirs: Sequence[Tensor], exact: Sequence[Tensor]) -> StageErrors:
    """Return the errors of one stage, given a tensor for each recording. exact: by stock in float64."""
    same_shapes = [x.shape for x in ours] == [x.shape for x in exact]
    squares = sum(x.double().square().sum().item() for x in exact)
    max_abs, relative_l2 = _distance(ours, theirs, squares) if same_shapes else (inf, inf)
    our_max, our_l2 = _distance(ours, exact, squares) if same_shapes else (inf, inf)
    their_max, their_l2 = _distance(theirs, exact, squares)
    return StageErrors(
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
    """Return the largest magnitude in x; 0 if x is empty."""
    return x.abs().max().item() if x.numel() else 0.0


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> tuple[float, float]:
    """Return the max abs difference and the relative L2 difference from theirs; infinite if shapes differ."""
    if [x.shape for x in ours] != [x.shape for x in theirs]:
        return inf, inf
    return _distance(ours, theirs, sum(x.double().square().sum().item() for x in theirs))


def _distance(left: Sequence[Tensor], right: Sequence[Tensor], squares: float) -> tuple[float, float]:
    max_abs, total = 0.0, 0.0
    for one, other in zip(left, right, strict=True):
        difference = one.double() - other.double()
        if not bool(torch.isfinite(difference).all()):
            return inf, inf
        max_abs = max(max_abs, largest(difference))
        total += difference.square().sum().item()
    if total == 0:
        return max_abs, 0.0
    return max_abs, sqrt(total / squares) if squares else inf


@dataclass(frozen=True)
class Check:
    """A bound: the name of the bounded quantity, its value, and its limit."""

    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the value is within the bound."""
        return self.value <= self.limit

    @property
    def share(self) -> float:
        """The value over the limit; 0 if both are 0."""
        if self.value == 0:
            return 0.0
        return self.value / self.limit if self.limit else inf


def check_stage(dtype: str, figures: StageErrors) -> tuple[Check, ...]:
    """Return the bounds of a stage."""
    if dtype == "bfloat16":
        return (Check("from float64, L2", figures.our_l2, BFLOAT16_RATIO * figures.their_l2),)
    return _check(dtype, figures, STAGE_ROUNDINGS * figures.largest)


def check_gradient(dtype: str, figures: StageErrors, scale: float) -> tuple[Check, ...]:
    """Return the bounds of the gradient of a parameter. scale: the largest number in the gradients of its module."""
    if dtype == "bfloat16":
        return ()
    return _check(dtype, figures, GRADIENT_ROUNDINGS * scale)


def check_batch(difference: float, their_error: float) -> tuple[Check, ...]:
    """Return the bounds of float32 features in a batch against those alone. their_error: largest error of stock."""
    return (Check("from alone", difference, max(BATCH, 2 * their_error)),)


def check_symbols(different: int) -> tuple[Check, ...]:
    """Return the bounds of CTC symbols. different: number of frames whose most likely symbol differs from stock's."""
    return (Check("other symbols", different, 0.0),)


def _check(dtype: str, figures: StageErrors, steps: float) -> tuple[Check, ...]:
    """Return the bounds of one tensor. steps: number of roundings that are always allowed times the rounded number."""
    floor = steps * torch.finfo(getattr(torch, dtype)).eps
    if dtype == "float64":
        return (Check("from stock", figures.max_abs, max(FLOAT64, floor)),)
    # The same floor for errors that are relative to the root mean square, which is below the largest number.
    relative = floor / figures.largest if figures.largest else inf
    return (
        Check("from stock", figures.max_abs, max(FLOAT32, MAX_DISTANCE_RATIO * figures.their_max)),
        Check("from float64", figures.our_max, max(MAX_ABS_RATIO * figures.their_max, floor)),
        Check("from float64, L2", figures.our_l2, max(FLOAT32_RATIO * figures.their_l2, relative)),
    )
