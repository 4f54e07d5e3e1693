"""Faults of decoders, for processes that find this folder on PYTHONPATH: Python imports this module when it starts.

FAULTS in the environment: {"kind": "regular expression on paths"}. "once KIND" happens once to a path in a run, which
is noted in the folder ONCE.
"""

import ctypes
import json
import os
import re
import sys
from pathlib import Path

if "FAULTS" in os.environ and "-P" in sys.orig_argv:  # the processes that decode, and not the run
    import soundfile

    right = soundfile.SoundFile.__init__

    def wrong(self, file, *arguments, **options):
        name = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)
        for kind, where in json.loads(os.environ["FAULTS"]).items():
            if re.search(where, name) and _due(kind, name):
                KINDS[kind.removeprefix("once ")]()
        right(self, file, *arguments, **options)

    def _due(kind, name):
        if not kind.startswith("once "):
            return True
        try:
            (Path(os.environ["ONCE"]) / f"{os.getppid()} {Path(name).name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _hoard():
        hoard = []
        while True:
            hoard.append(bytearray(b"x" * 10_000_000))

    KINDS = {
        "hang": ctypes.CDLL(None).pause,
        "hold": ctypes.PyDLL(None).pause,  # hangs, and no other thread of Python's runs
        "crash": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "exit": lambda: os._exit(3),
        "hoard": _hoard,
    }
    soundfile.SoundFile.__init__ = wrong
