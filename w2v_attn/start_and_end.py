"""The start and the end of a command's process, without time spent on garbage collection.

torch and transformers create half a million objects, none of which is garbage before the process ends. Python's
collector visits all of them many times during the import, and twice more at exit, which takes two seconds.
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

BROKEN_PIPE = 141  # exit code 128 + SIGPIPE, as of the shell's own tools


def import_without_gc(*modules: str) -> None:
    """Import modules without garbage collection, and exclude all present objects from later collections.

    Objects that are already garbage are excluded, too, so call it at the start of a process.
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
        atexit.register(gc.unfreeze)  # objects that are frozen when the interpreter ends are reported as leaked
        if was_on:
            gc.enable()


def run_and_exit(command: Callable[[], object]) -> NoReturn:
    """Call a command that is all its process does, and end the process with its exit code.

    The process ends as those of multiprocessing do: it joins threads, calls `atexit` callbacks and flushes files, but
    does not tear down modules. So no object's `__del__` is called, and no code after this call runs. Python's ordinary
    exit is used where another program runs the command in its process (a debugger, coverage, a test), where a thread
    remains, where the command raises an exception, and where its output cannot be written.

    If the reader of its output has gone, as after `| head`, the process ends silently with `BROKEN_PIPE`.

    Args:
        command: The function. Its exit code is that of its SystemExit; without one it is 0.
    """
    alone = _is_alone()
    if alone:
        _reopen_closed_streams()
        _replace_unencodable_characters()
    try:
        command()
        code: object = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BrokenPipeError:
        if not alone or not any(map(_has_no_reader, _streams())):
            raise
        code = BROKEN_PIPE
    if alone and _has_broken_pipe() and code == 0:
        code = BROKEN_PIPE
    if alone and isinstance(code, int):
        with suppress(KeyboardInterrupt):  # stop waiting for threads; the exit code stays
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        if threading.active_count() == 1 and _flush_files():  # another thread may hold the lock of a file
            os._exit(code)
    sys.exit(code)  # type: ignore[arg-type] - the code of the command's own SystemExit


def _is_alone() -> bool:
    """Return whether only the program's main module and Python itself are above this function on the stack."""
    if sys.flags.inspect or sys.flags.interactive:
        return False
    ours = ("runpy", "w2v_attn.__main__", __name__)
    theirs = {runpy.run_path.__code__, runpy.run_module.__code__}  # `python -m` calls neither
    frame = sys._getframe()
    while frame is not None:
        # Some tools that run programs, such as trace, execute the program as a second `__main__`.
        is_ours = frame.f_globals is vars(sys.modules["__main__"]) or frame.f_globals.get("__name__") in ours
        if not is_ours or frame.f_code in theirs:
            return False
        frame = frame.f_back
    return True


def _streams() -> list[TextIO]:
    """Return standard output and error, without those that are closed, which are None."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _reopen_closed_streams() -> None:
    """Open closed standard streams on the null device.

    Otherwise the first files that are opened get their descriptors, and everything that is printed goes into them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def _replace_unencodable_characters() -> None:
    """Print a question mark for characters that the terminal's encoding lacks, instead of raising an error."""
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _has_no_reader(stream: TextIO) -> bool:
    """Return whether a stream is a pipe whose reader has gone."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # a stream without a descriptor
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _has_broken_pipe() -> bool:
    """Return whether the reader of a standard stream has gone; further output is then discarded."""
    broken = False
    for stream in _streams():
        try:
            stream.flush()
        except BrokenPipeError:
            broken = True
            with suppress(OSError, ValueError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), stream.fileno())
        except (OSError, ValueError):  # Python's ordinary exit reports it
            pass
    return broken


def _flush_files() -> bool:
    """Flush all open files, and return whether the standard streams could be flushed."""
    for candidate in gc.get_objects():
        # Not isinstance, which reads `__class__`: deprecated objects of torch warn when it is read.
        if type(candidate) in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom):
            with suppress(OSError, ValueError):  # Python ignores such errors at exit, too
                candidate.flush()
    try:
        for stream in _streams():
            stream.flush()
    except (OSError, ValueError):  # the disk is full, for one
        return False
    return True
