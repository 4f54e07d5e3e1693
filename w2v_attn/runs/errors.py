"""What an error says of one row, and whether memory was short."""

import torch


def failure(error: Exception) -> ValueError:
    """What an error says of one row, as one that holds no frames; raises it again where it is not about a row."""
    if isinstance(error, ValueError):
        return ValueError(str(error))
    if out_of_memory(error):
        return ValueError("does not fit into memory: cut it into pieces")
    raise error


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory was short; on a CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
