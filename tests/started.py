"""Commands in processes of their own, without a start of Python's for each.

They are forked from a process that has imported what they need and done nothing else, so neither threads nor what tests
replaced comes along; what is told of the environment and the folder does.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from w2v_attn.cli import app


class Started:
    """A command that runs. log: what it prints, both streams in one file; main: another one than w2v-attn's."""

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        *,
        folder: Path | None = None,
        own_group: bool = False,
        main: Callable[[Sequence[str]], None] = app.main,
    ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["w2v_attn.extraction.extractor", "w2v_attn.training.finetuning"])
        where = (str(folder or Path.cwd()), dict(os.environ), str(log), own_group)
        self._log = log
        self._process = context.Process(target=_run, args=(main, [str(argument) for argument in arguments], *where))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    def end(self, seconds: float = 60) -> int:
        """Waits for it -> its exit code, or the negative signal it died of."""
        self._process.join(seconds)
        if (code := self._process.exitcode) is None:
            self._process.kill()
            raise TimeoutError(f"it has not ended after {seconds} seconds:\n{self.said()}")
        return code

    def said(self) -> str:
        return self._log.read_text()


def _run(
    main: Callable[[Sequence[str]], None],
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    log: str,
    own_group: bool,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if own_group:
        os.setpgid(0, 0)
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    main(arguments)
