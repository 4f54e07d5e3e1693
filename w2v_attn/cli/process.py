"""The process of a command: its exit code, the command line that started it, signals, and optional dependencies."""

import os
import shlex
import signal
import sys
from importlib.util import find_spec

# Exit codes. Another one is `start_and_end.BROKEN_PIPE`.
DONE, SOME_FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def command() -> str:
    """Return the command line that started this process, quoted for a shell."""
    return shlex.join([*sys.argv[0].split(" "), *sys.argv[1:]])


def is_first() -> bool:
    """Return whether this is rank 0 of torchrun's processes, the one that prints; True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def need(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed.

    Raises:
        ValueError: some are missing; the text says how to install them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ValueError(f"this command needs {', '.join(missing)}: pip install 'w2v_attn[{extra}]'")


class Interruption:
    """A context in which Ctrl-C or SIGTERM asks the run to end after the current recording; a second one ends it now.

    Attributes:
        code: The exit code for the signal that arrived; None as long as none did.
    """

    def __init__(self) -> None:
        self.code: int | None = None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._arrived) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: object) -> None:
        if self.code is not None:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
