"""The bounds within which ours is stock's, and the few places where they must give way to rounding itself.

| what | bound |
|---|---|
| float32 | at most 1e-4 from stock, and an error against float64 of at most 2 × stock's own |
| float64 | at most 1e-10 from stock |
| bfloat16 | a relative L2 error against float64 of at most 1.1 × stock's own; gradients are only told |
| gradients | as the forward, for each parameter |
| a batch, and its order | features at most 1e-5 from those of a recording alone, in float32 |
| CTC | the same likeliest symbol in every frame, in float32 |

1e-4 and 1e-5 are absolute, and the frames of a real checkpoint can be in the thousands, where float32 itself has steps
of 2e-4. So what stock's own float32 is from float64, e at most, bounds what can be asked: two results with errors of at
most 3 e and e lie up to 4 e apart; in a batch and alone, with errors of e each, 2 e. Where e is small the numbers hold.

The factor 2 is asked of the relative L2 error, to which all numbers add. The largest error is that of one number among
thousands: where the former was 1.0 and 1.5 times stock's, the latter was 1.1 and 1.9 times. It may be 3 times stock's.

The factors need a floor where e is luck. A stage has thousands of numbers, so luck matters only where nothing is
rounded but the input: STAGE_ROUNDINGS of it are allowed. A gradient can be a dozen sums over all frames: two right
float32 computations of such a one were seen to have errors of 10 and 49 roundings, hence GRADIENT_ROUNDINGS. What a
rounding is the largest number among the gradients of its module says: a bias has the sums of what a weight has sums of
products with, and where signs cancel, as they do for the bias of keys, which softmax does not see, little is left of it
but the roundings of all that was added up.
"""

from dataclasses import dataclass
from math import inf

import torch

from w2v_attn.verification.figures import Figures

FLOAT32, FLOAT64 = 1e-4, 1e-10
# Our error against float64 over stock's own: the relative L2 error, and in float32 the largest one.
FLOAT32_RATIO, BFLOAT16_RATIO, LARGEST_RATIO = 2.0, 1.1, 3.0
# Between a result whose largest error is LARGEST_RATIO times stock's, and stock's.
APART = LARGEST_RATIO + 1.0
BATCH = 1e-5
STAGE_ROUNDINGS, GRADIENT_ROUNDINGS = 4, 64


@dataclass(frozen=True)
class Check:
    """One bound: what is bounded, its value, and the most it may be."""

    what: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it is within the bound."""
        return self.value <= self.limit

    @property
    def share(self) -> float:
        """The value over the limit; 0 where both are 0."""
        if self.value == 0:
            return 0.0
        return self.value / self.limit if self.limit else inf


def check_stage(dtype: str, figures: Figures) -> tuple[Check, ...]:
    """What is bounded of a stage."""
    if dtype == "bfloat16":
        return (Check("from float64, L2", figures.our_l2, BFLOAT16_RATIO * figures.their_l2),)
    return _check(dtype, figures, STAGE_ROUNDINGS * figures.largest)


def check_gradient(dtype: str, figures: Figures, scale: float) -> tuple[Check, ...]:
    """What is bounded of the gradient of a parameter. scale: the largest number among those of its module."""
    if dtype == "bfloat16":
        return ()
    return _check(dtype, figures, GRADIENT_ROUNDINGS * scale)


def check_batch(difference: float, their_error: float) -> tuple[Check, ...]:
    """What is bounded of features in a batch against those alone, in float32. their_error: stock's own."""
    return (Check("from alone", difference, max(BATCH, 2 * their_error)),)


def check_symbols(different: int) -> tuple[Check, ...]:
    """different: frames whose likeliest symbol is another than stock's."""
    return (Check("other symbols", different, 0.0),)


def _check(dtype: str, figures: Figures, steps: float) -> tuple[Check, ...]:
    """steps: the roundings that are always allowed, times the number that is rounded."""
    floor = steps * torch.finfo(getattr(torch, dtype)).eps
    if dtype == "float64":
        return (Check("from stock", figures.max_abs, max(FLOAT64, floor)),)
    # The same floor for errors that are relative to the root mean square, which is below the largest number.
    relative = floor / figures.largest if figures.largest else inf
    return (
        Check("from stock", figures.max_abs, max(FLOAT32, APART * figures.their_max)),
        Check("from float64", figures.our_max, max(LARGEST_RATIO * figures.their_max, floor)),
        Check("from float64, L2", figures.our_l2, max(FLOAT32_RATIO * figures.their_l2, relative)),
    )
