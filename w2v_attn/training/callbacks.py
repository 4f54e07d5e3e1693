"""What happens between the updates: frozen ones, an early end, and what is told."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback

from w2v_attn.training.watching import Watcher


class FrozenUpdates(TrainerCallback):
    """In the first updates only the head is trained. Source: wav2vec 2.0, section 4.3: 10,000 updates.

    prefix: the name of the encoder in the model, whatever is wrapped around it.
    """

    def __init__(self, prefix: str, updates: int):
        self._prefix, self._updates = prefix, updates
        self._parameters: list[nn.Parameter] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        # Now, when nothing replaces parameters any more.
        self._parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and self._prefix in name.split(".")
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trained = state.global_step >= self._updates
        for parameter in self._parameters:
            parameter.requires_grad_(trained)


class Patience(TrainerCallback):
    """Ends training after so many validations without a better one; counted from the log, which checkpoints keep."""

    def __init__(self, metric: str, validations: int):
        self._metric, self._validations = metric, validations

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._decide(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._decide(state, control)

    def _decide(self, state: Any, control: Any) -> None:
        values = [entry[self._metric] for entry in state.log_history if self._metric in entry]
        if values and len(values) - 1 - values.index(min(values)) >= self._validations:
            control.should_training_stop = True


class Reporting(TrainerCallback):
    """Tells the watcher, and ends training with a checkpoint when the watcher asks for it."""

    def __init__(self, watcher: Watcher, anybody: Callable[[bool], bool]):
        """anybody: whether it is so in any of the processes."""
        self._watcher, self._anybody = watcher, anybody
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._watcher.begun(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anybody(self._watcher.interrupted()):
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._watcher.updated(state.global_step, logs["loss"])
