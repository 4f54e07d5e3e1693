"""What happens between the updates: frozen ones, an early end, and what is told."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback


class TrainingListener(Protocol):
    """Hears what happens."""

    def on_data_report(self, rows: Iterable[tuple[str, str]]) -> None:
        """The report before training: (name, value)."""

    def on_recordings_read(self, done: int, total: int) -> None:
        """So many recordings were read before training."""

    def on_train_begin(self, update: int, updates: int) -> None:
        """Training begins, or goes on, after so many updates."""

    def on_step(self, update: int, loss: float) -> None:
        """An update is done. loss: of its recordings."""

    def on_evaluate(self, update: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None:
        """A validation is done."""

    def interrupted(self) -> bool:
        """Whether training shall save a checkpoint and end."""
        ...


class SilentListener:
    """A listener that keeps all to itself. asks: another one, which still says whether training shall end."""

    def __init__(self, asks: TrainingListener | None = None):
        self._asks = asks

    def on_data_report(self, rows: Iterable[tuple[str, str]]) -> None: ...

    def on_recordings_read(self, done: int, total: int) -> None: ...

    def on_train_begin(self, update: int, updates: int) -> None: ...

    def on_step(self, update: int, loss: float) -> None: ...

    def on_evaluate(self, update: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None: ...

    def interrupted(self) -> bool:
        return self._asks is not None and self._asks.interrupted()


class FreezeEncoder(TrainerCallback):
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


class EarlyStopping(TrainerCallback):
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


class ListenerCallback(TrainerCallback):
    """Tells the listener, and ends training with a checkpoint when the listener asks for it."""

    def __init__(self, listener: TrainingListener, anybody: Callable[[bool], bool]):
        """anybody: whether it is so in any of the processes."""
        self._listener, self._anybody = listener, anybody
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._listener.on_train_begin(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anybody(self._listener.interrupted()):
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._listener.on_step(state.global_step, logs["loss"])
