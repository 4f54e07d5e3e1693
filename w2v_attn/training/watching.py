"""What a run tells while it goes on. Whoever shows it to people takes the place of these methods."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class Watcher(Protocol):
    """Hears what happens."""

    def surveyed(self, rows: Iterable[tuple[str, str]]) -> None:
        """The report before training: (name, value)."""

    def reading(self, done: int, total: int) -> None:
        """So many recordings were read before training."""

    def begun(self, update: int, updates: int) -> None:
        """Training begins, or goes on, after so many updates."""

    def updated(self, update: int, loss: float) -> None:
        """An update is done. loss: of its recordings."""

    def evaluated(self, update: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None:
        """A validation is done."""

    def interrupted(self) -> bool:
        """Whether training shall save a checkpoint and end."""
        ...


class Silent:
    """A watcher that keeps all to itself. asks: another one, which still says whether training shall end."""

    def __init__(self, asks: Watcher | None = None):
        self._asks = asks

    def surveyed(self, rows: Iterable[tuple[str, str]]) -> None: ...

    def reading(self, done: int, total: int) -> None: ...

    def begun(self, update: int, updates: int) -> None: ...

    def updated(self, update: int, loss: float) -> None: ...

    def evaluated(self, update: int, metrics: Mapping[str, float], best: bool, warning: str | None) -> None: ...

    def interrupted(self) -> bool:
        return self._asks is not None and self._asks.interrupted()
