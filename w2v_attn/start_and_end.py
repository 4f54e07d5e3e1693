"""How a command begins and ends its process without time spent on garbage collection.

torch and transformers are half a million objects, none of which is garbage before the process ends. Python's collector
goes over all of them again and again while they are imported, and twice more at the end: two seconds of a start.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn


def import_to_stay(*modules: str) -> None:
    """Imports modules, those that bring hundreds of others. Later collections leave out what is there by then."""
    if all(module in sys.modules for module in modules):
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            import_module(module)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # what is frozen at the interpreter's end counts as leaked
        if was_on:
            gc.enable()


def run(command: Callable[[], object]) -> NoReturn:
    """Calls a command that is all its process does, and ends the process with its exit code.

    Threads are waited for, callbacks of `atexit` are called and both streams are flushed, as at any end; what is left
    out is taking every module apart. An exception ends it in Python's own way.
    """
    ended: list[int] = []
    atexit.register(_leave, ended)  # the first to be registered is the last to be called
    try:
        command()
        code: object = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    if isinstance(code, int):
        ended.append(code)
    sys.exit(code)  # type: ignore[arg-type] - it was given so


def _leave(ended: list[int]) -> None:
    if not ended:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it any more, or the disk is full: Python has words and a code for that
        return
    os._exit(ended[0])
