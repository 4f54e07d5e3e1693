"""Callbacks of training: freezing the encoder, early stopping, and listeners that show progress."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback


class TrainingListener(Protocol):
    """The interface of objects that show the progress of training, such as `cli.progress.TrainingProgress`."""

    def on_data_report(self, rows: Iterable[tuple[str, str]]) -> None:
        """Receive the report on the data before training, as rows (name, value)."""

    def on_recordings_read(self, done: int, total: int) -> None:
        """Receive how many recordings are read before training."""

    def on_train_begin(self, step: int, max_steps: int) -> None:
        """Training begins, or resumes, after `step` steps."""

    def on_step(self, step: int, loss: float) -> None:
        """A step of the optimizer is done; loss: mean of its recordings."""

    def on_evaluate(self, step: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None:
        """A validation is done; best: whether it is the best so far."""

    def interrupted(self) -> bool:
        """Return whether training should save a checkpoint and end."""
        ...


class SilentListener:
    """A listener that shows nothing. asks: another listener that still decides whether training should end."""

    def __init__(self, asks: TrainingListener | None = None):
        self._asks = asks

    def on_data_report(self, rows: Iterable[tuple[str, str]]) -> None: ...

    def on_recordings_read(self, done: int, total: int) -> None: ...

    def on_train_begin(self, step: int, max_steps: int) -> None: ...

    def on_step(self, step: int, loss: float) -> None: ...

    def on_evaluate(self, step: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None: ...

    def interrupted(self) -> bool:
        return self._asks is not None and self._asks.interrupted()


class FreezeEncoder(TrainerCallback):
    """Train only the head in the first steps.

    Source: wav2vec 2.0, section 4.3, with 10,000 steps.

    Args:
        prefix: The name of the encoder in the model, without the names that wrappers add.
        steps: The number of steps.
    """

    def __init__(self, prefix: str, steps: int):
        self._prefix, self._steps = prefix, steps
        self._parameters: list[nn.Parameter] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        # Only now: wrappers such as FSDP replace parameters before this point.
        self._parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and self._prefix in name.split(".")
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trained = state.global_step >= self._steps
        for parameter in self._parameters:
            parameter.requires_grad_(trained)


class EarlyStopping(TrainerCallback):
    """Stop training after `validations` validations without a better one, counted from the log in the checkpoints."""

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


class ListenerCallback(TrainerCallback):
    """Report to a listener, and end training with a checkpoint when the listener asks for it."""

    def __init__(self, listener: TrainingListener, in_any_process: Callable[[bool], bool]):
        """in_any_process: returns whether its argument is true in any process."""
        self._listener, self._in_any_process = listener, in_any_process
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._listener.on_train_begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._in_any_process(self._listener.interrupted()):
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._listener.on_step(state.global_step, logs["loss"])
