"""FLOP formulas for the operators that torch's `FlopCounterMode` does not know.

Source: torch.utils.flop_counter, whose formulas count a multiplication and an addition as two.
"""

from typing import Any

import torch
from torch.utils import flop_counter

Shape = Any


def register_flop_formulas() -> None:
    """Register formulas for oneDNN's products and torch's CPU flash attention, if this torch has these operators."""
    formulas: tuple[tuple[str, str, Any], ...] = (
        ("mkldnn", "_linear_pointwise", _linear),
        ("mkldnn", "_convolution_pointwise", _convolution),
        ("aten", "_scaled_dot_product_flash_attention_for_cpu", _attention),
        ("aten", "_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
    )
    for namespace, name, formula in formulas:
        operator = getattr(getattr(torch.ops, namespace), name, None)
        if operator is not None and operator not in flop_counter.flop_registry:
            register_formula: Any = flop_counter.register_flop_formula(operator)
            register_formula(formula)


def _linear(x_shape: Shape, weight_shape: Shape, *others: Any, out_shape: Shape = None, **options: Any) -> int:
    rows = torch.Size(x_shape[:-1]).numel()
    return 2 * rows * weight_shape[0] * weight_shape[1]


def _convolution(x_shape: Shape, weight_shape: Shape, *others: Any, out_shape: Shape, **options: Any) -> int:
    batch, _, *places = out_shape
    return 2 * batch * torch.Size(places).numel() * torch.Size(weight_shape).numel()


def _attention(q_shape: Shape, k_shape: Shape, v_shape: Shape, *others: Any, **options: Any) -> int:
    return flop_counter.sdpa_flop_count(q_shape, k_shape, v_shape)


def _attention_backward(
    do_shape: Shape, q_shape: Shape, k_shape: Shape, v_shape: Shape, *o: Any, **options: Any
) -> int:
    return flop_counter.sdpa_backward_flop_count(do_shape, q_shape, k_shape, v_shape)
