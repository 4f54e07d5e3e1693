"""The dtypes that users can name, and their names."""

import torch

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as on the command line, such as `float32`."""
    return str(dtype).removeprefix("torch.")
