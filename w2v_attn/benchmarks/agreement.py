"""Whether features are those of the reference: stock Hugging Face, one by one, float32."""

from collections.abc import Sequence
from math import inf

from torch import Tensor

from w2v_attn.verification import bounds
from w2v_attn.verification.figures import distance

# bfloat16: the error of a peer over that of stock's own; peers that round elsewhere still count.
PEERS_MOST_RATIO = 2.0


def errors(features: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[float, float]:
    """(max abs difference, relative L2 error over all frames); infinite where shapes differ or numbers are none."""
    if len(features) != len(reference):
        return inf, inf
    placed = [rows.to(wanted.device) for rows, wanted in zip(features, reference, strict=True)]
    return distance(placed, reference)


def agrees(max_abs_error: float, relative_error: float, stock_error: float | None, *, ours: bool) -> bool:
    """Within the bounds. stock_error: relative error of stock in the dtype that is compared; None in float32."""
    if stock_error is None:
        return max_abs_error <= bounds.FLOAT32
    return relative_error <= stock_error * (bounds.BFLOAT16_RATIO if ours else PEERS_MOST_RATIO)


def check_ours(name: str, where: str, max_abs_error: float, relative_error: float, stock_error: float | None) -> None:
    """Raises ValueError where ours does not agree: its time cannot be compared."""
    if not agrees(max_abs_error, relative_error, stock_error, ours=True):
        stock = "" if stock_error is None else f", stock's own in this dtype {stock_error:.1e}"
        raise ValueError(
            f"{name} does not compute the reference's features on {where} (max abs difference {max_abs_error:.1e}, "
            f"relative error {relative_error:.1e}{stock}): its time cannot be compared"
        )
