"""The process that a command is: how it was called, whether it speaks, and who asks for its end."""

import os
import shlex
import signal
import sys

from w2v_attn.cli.exit_codes import INTERRUPTED, TERMINATED


def command() -> str:
    """The command as it was given, to be given again."""
    return shlex.join([*sys.argv[0].split(" "), *sys.argv[1:]])


def is_first() -> bool:
    """Whether this is the process of torchrun that speaks."""
    return os.environ.get("RANK", "0") == "0"


class Interruption:
    """While open, Ctrl-C or SIGTERM asks the run to end after what it has at hand; a second one ends it at once.

    code: the exit code of what arrived; None as long as nothing did.
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
