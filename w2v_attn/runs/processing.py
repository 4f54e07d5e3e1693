"""A batch through the model; one that fails is taken apart until it is known what failed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.errors import failure, out_of_memory
from w2v_attn.runs.reading import Read

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Batch = Sequence[tuple[Row, Recording]]


@dataclass
class Limit:
    """Frames that fit into memory at once, over all recordings of a batch, as far as that was found out."""

    frames: float = float("inf")


def process_batch(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[Read], limit: Limit
) -> list[Found | ValueError]:
    """What the model finds in each of a batch; a batch that fails is taken apart until it is known what failed.

    Memory that was short changes the parts in which a batch is taken, and never which batches there are.
    """
    readable = [read for read in batch if isinstance(read.recording, Recording)]
    found = iter(_process_readable(process, readable, limit))
    return [next(found) if isinstance(read.recording, Recording) else _no_recording(read) for read in batch]


def _no_recording(read: Read) -> ValueError:
    assert isinstance(read.recording, ValueError)
    return read.recording


def _process_readable(
    process: Callable[[Batch], Sequence[Found | ValueError]], batch: Sequence[Read], limit: Limit
) -> list[Found | ValueError]:
    frames = sum(read.frames for read in batch)
    if len(batch) == 0 or (len(batch) > 1 and frames > limit.frames):
        return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]
    try:
        return list(process([(read.row, read.recording) for read in batch if isinstance(read.recording, Recording)]))
    except Exception as error:
        reason, memory_is_short = failure(error), out_of_memory(error)
    # From here on nobody holds the error, nor the tensors that its frames hold.
    if memory_is_short:
        torch.cuda.empty_cache()  # blocks of other sizes; does nothing where no GPU is in use
    if len(batch) == 1:
        return [reason]
    if memory_is_short:
        limit.frames = max(1, frames // 2)
        logger.warning("%d frames do not fit into memory: at most %d at once from here on", frames, limit.frames)
    return [found for half in _halves(batch) for found in _process_readable(process, half, limit)]


def _halves(batch: Sequence[Read]) -> list[Sequence[Read]]:
    """Two of them; none of nothing."""
    half = len(batch) // 2
    return [part for part in (batch[:half], batch[half:]) if part]
