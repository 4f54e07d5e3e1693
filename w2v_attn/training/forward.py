"""The one place where training runs the model: a batch in, the loss of each recording out.

Everything around it sees batches and losses only, so that a forward without padding needs a change here and in
`dataset.Collate`, and nowhere else.
"""

from typing import Any

from torch import Tensor, nn

from w2v_attn.training import frontend
from w2v_attn.training.tasks.task import Task


def losses_of(model: nn.Module, batch: dict[str, Any], task: Task) -> Tensor:
    """float32 [B]: the loss of each recording of a batch of `Collate`. model: may be wrapped (DDP, FSDP, PEFT)."""
    frontend.tell_lengths(model, batch["lengths"])
    outputs = model(input_values=batch["input_values"], attention_mask=batch["attention_mask"])
    return task.losses(outputs.logits, batch["labels"], batch["frames"])
