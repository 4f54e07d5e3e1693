"""A command ends as any process of Python does, but for taking its modules apart."""

import os
import subprocess
import sys

import pytest

RUN = "import atexit, sys, threading, time\nfrom w2v_attn.start_and_end import run\n"


def ended(code, **options):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": buffered, **options}
    return subprocess.run([sys.executable, "-c", RUN + code], text=True, **options)


@pytest.mark.parametrize(("end", "code"), [("None", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit(130)", 130)])
def test_the_exit_code_is_the_command_s(end, code):
    done = ended(f"run(lambda: {end})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(("end", "said"), [("sys.exit('why')", "why\n"), ("1 / 0", "ZeroDivisionError: ")])
def test_words_and_exceptions_end_it_in_python_s_own_way(end, said):
    done = ended(f"run(lambda: {end})")
    assert done.returncode == 1
    assert said in done.stderr


def test_what_was_printed_is_flushed_threads_end_and_callbacks_are_called():
    done = ended("""
atexit.register(print, "before")
def command():
    print("printed")
    atexit.register(print, "after")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    sys.exit(7)
run(command)
""")
    assert (done.returncode, done.stderr) == (7, "")
    # A callback from before `run` is the one that is not waited for: there is none in a command.
    assert done.stdout.split() == ["printed", "thread", "after"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_what_cannot_be_printed_is_no_success():
    with open("/dev/full", "w") as full:
        done = ended("run(lambda: print('all is well', end=''))", stdout=full)
    assert done.returncode == 120
    assert "No space left on device" in done.stderr


def test_modules_are_not_taken_apart():
    ends = [
        ended(f"class A:\n    def __del__(self): print('gone', flush=True)\nkept = A()\n{end}").stdout
        for end in ("pass", "run(lambda: None)")
    ]
    assert ends == ["gone\n", ""]


IMPORT = "import gc\nfrom w2v_attn.start_and_end import import_to_stay\n"


def test_after_imports_there_is_nothing_to_walk():
    done = ended(f"""{IMPORT}
from w2v_attn.app import MODEL
import_to_stay(*MODEL)
assert set(MODEL) <= set(sys.modules)
print(gc.isenabled(), gc.get_freeze_count() > 100_000, gc.get_count()[2])
""")
    assert done.stderr == ""  # with objects that nobody lets go of, nanobind complains
    assert done.stdout == "True True 0\n"


def test_who_collects_by_hand_goes_on_so():
    done = ended(f"""{IMPORT}
gc.disable()
import_to_stay("decimal")
print(gc.isenabled(), gc.get_freeze_count() > 0)
""")
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_where_all_is_imported_nothing_is_frozen():
    assert ended(f"{IMPORT}import_to_stay('gc', 'sys')\nprint(gc.get_freeze_count())").stdout == "0\n"
