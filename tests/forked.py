"""Steps in processes that are forked from this one, which has imported what they need."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import IO

CRASHED = 99  # no command's


def fork(step: Callable[[], object], said: IO) -> int:
    """A step in a process of its own -> the id of that.

    It ends with the step's exit code, or with CRASHED where that raises. said: the file that what it prints goes into.
    """
    if (child := os.fork()) > 0:
        return child
    code = CRASHED
    try:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
        step()
        code = 0
    except SystemExit as done:
        code = int(str(done.code))
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
