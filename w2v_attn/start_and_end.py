"""How a command begins and ends its process without time spent on garbage collection.

torch and transformers are half a million objects, none of which is garbage before the process ends. Python's collector
goes over all of them again and again while they are imported, and twice more at the end: two seconds of a start.
"""

import atexit
import gc
import io
import os
import runpy
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn, TextIO

NOBODY_READS = 141  # 128 + SIGPIPE: what the shell says of its own tools


def import_to_stay(*modules: str) -> None:
    """Imports modules, those that bring hundreds of others.

    Later collections leave out all objects that are there by then: also garbage, so it is for the start of a process.
    """
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

    As multiprocessing ends its processes: threads are waited for, callbacks of `atexit` called and files flushed, but
    modules are not taken apart, so no object's `__del__` is called, and nothing that the program's own module has after
    the call is reached. Python's own end it is where others run the command in their process (a debugger, coverage, a
    test) or leave a thread behind, where it ends with an exception, or where what it printed cannot be written.
    Where nobody reads that any more, as after `| head`, it ends in silence with the code that the shell's tools have.
    """
    alone = _is_alone()
    if alone:
        _open_what_was_closed()
        _print_what_there_are_letters_for()
    try:
        command()
        code: object = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BrokenPipeError:
        if not alone or not any(map(_has_no_reader, _streams())):
            raise
        code = NOBODY_READS
    if alone and _turned_away() and code == 0:
        code = NOBODY_READS
    if alone and isinstance(code, int):
        with suppress(KeyboardInterrupt):  # then nobody is waited for any more, and the command has ended as it has
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        if threading.active_count() == 1 and _flushed():  # a thread may hold the lock of a file for ever
            os._exit(code)
    sys.exit(code)  # type: ignore[arg-type] - it was given so


def _is_alone() -> bool:
    """Whether nobody stands above the command but the module that is the program, and Python that started it."""
    if sys.flags.inspect or sys.flags.interactive:
        return False
    ours = ("runpy", "w2v_attn.__main__", __name__)
    theirs = {runpy.run_path.__code__, runpy.run_module.__code__}  # `python -m` calls neither
    frame = sys._getframe()
    while frame is not None:
        # Of some that run programs, such as trace, the program is a second `__main__`.
        is_ours = frame.f_globals is vars(sys.modules["__main__"]) or frame.f_globals.get("__name__") in ours
        if not is_ours or frame.f_code in theirs:
            return False
        frame = frame.f_back
    return True


def _streams() -> list[TextIO]:
    """What is printed to; None is one that a host has closed."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _open_what_was_closed() -> None:
    """Streams that are closed lead nowhere: else the first files that are opened get their numbers, and all prints."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def _print_what_there_are_letters_for() -> None:
    """Where a terminal knows no arrow, or a name is not Unicode, a question mark is no reason to end a run."""
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _has_no_reader(stream: TextIO) -> bool:
    """Whether what a stream goes into is a pipe that nobody will read."""
    if not hasattr(select, "poll"):
        return False
    asked = select.poll()
    try:
        asked.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream of somebody's own
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _turned_away() -> bool:
    """Whether anything that was printed finds nobody to read it; the rest goes nowhere then."""
    away = False
    for stream in _streams():
        try:
            stream.flush()
        except BrokenPipeError:
            away = True
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
        except (OSError, ValueError):  # Python has words and a code for that
            pass
    return away


def _flushed() -> bool:
    """Writes what files that are open still hold; whether that went well with what is printed."""
    for thing in gc.get_objects():
        # Not isinstance, which asks a thing for its class: some of torch's warn that they are deprecated then.
        if type(thing) in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):
            with suppress(OSError, ValueError):  # it is nobody's any more: Python would not say so either
                thing.flush()
    try:
        for stream in _streams():
            stream.flush()
    except (OSError, ValueError):  # the disk is full, for one
        return False
    return True
