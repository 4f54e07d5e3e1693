"""A command ends like any Python process, except that its modules are not torn down."""

import os
import shlex
import subprocess
import sys

import pytest

RUN = "import atexit, sys, threading, time\nfrom w2v_attn.start_and_end import run_and_exit\n"


def ended(code, **options):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": buffered, **options}
    return subprocess.run([sys.executable, "-c", RUN + code], text=True, **options)


@pytest.mark.parametrize(("end", "code"), [("None", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit(130)", 130)])
def test_the_exit_code_is_the_command_s(end, code):
    done = ended(f"run_and_exit(lambda: {end})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(("end", "said"), [("sys.exit('why')", "why\n"), ("1 / 0", "ZeroDivisionError: ")])
def test_words_and_exceptions_end_it_in_python_s_own_way(end, said):
    done = ended(f"run_and_exit(lambda: {end})")
    assert done.returncode == 1
    assert said in done.stderr


def test_threads_end_callbacks_are_called_and_files_are_flushed(tmp_path):
    done = ended(f"""
atexit.register(print, "before")
def command():
    print("printed")
    atexit.register(print, "after")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    global file
    file = open({str(tmp_path / "file")!r}, "w")
    file.write("kept")
    sys.exit(7)
run_and_exit(command)
""")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split() == ["printed", "thread", "after", "before"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "host",
    [
        "runpy.run_path(sys.argv[1], run_name='__main__')",
        "with contextlib.ExitStack() as stack: stack.callback(run_and_exit, lambda: sys.exit(3))",
    ],
)
def test_a_program_that_runs_a_command_in_its_process_continues_after_it(host, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"{RUN}run_and_exit(lambda: sys.exit(3))")
    done = ended(f"""
import contextlib, runpy
sys.argv.append({str(script)!r})
try:
    {host}
except SystemExit as end:
    print("ended with", end.code)
sys.exit(5)
""")
    assert (done.returncode, done.stdout, done.stderr) == (5, "ended with 3\n", "")


@pytest.mark.parametrize("host", [["-m", "trace", "--listfuncs"], ["-m", "profile"], ["-i"]], ids=" ".join)
def test_tools_of_python_that_watch_a_command_reach_their_end(host, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"{RUN}run_and_exit(lambda: print('done'))")
    plain = [sys.executable, str(script)]
    watched = [sys.executable, *host, str(script)]
    said = [
        subprocess.run(line, input="print('more')", capture_output=True, text=True, cwd=tmp_path).stdout
        for line in (plain, watched)
    ]
    assert said[0] == "done\n"
    assert said[1].startswith("done\n")
    assert len(said[1]) > len(said[0])


def test_a_thread_that_hangs_on_a_file_does_not_keep_the_process():
    done = ended(
        """
import os
reads, writes = os.pipe()
pipe = open(writes, "wb")
threading.Thread(target=pipe.write, args=(b"0" * 1_000_000,), daemon=True).start()
time.sleep(0.2)
run_and_exit(lambda: sys.exit(3))
""",
        timeout=20,
    )
    assert done.returncode in (3, -6)  # Python itself gives up on the file, in some versions with an abort


def test_the_module_is_the_command():
    for argument, code in (("--version", 0), ("nonsense", 2)):
        done = subprocess.run([sys.executable, "-m", "w2v_attn", argument], capture_output=True, text=True)
        assert done.returncode == code


@pytest.mark.skipif(os.name != "posix", reason="needs a shell of POSIX")
def test_without_anything_to_print_to_it_ends_in_silence():
    line = [sys.executable, "-m", "w2v_attn", "--version"]
    done = subprocess.run(["sh", "-c", f"{shlex.join(line)} >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell of POSIX")
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_what_is_printed_into_nothing_is_not_written_into_files(closed, tmp_path):
    """Otherwise the first files that are opened get the descriptors of closed streams."""
    script, written = tmp_path / "script.py", tmp_path / "written"
    script.write_text(f"""{RUN}import os
def command():
    with open({str(written)!r}, "wb") as file:
        os.write(1, b"printed"), os.write(2, b"printed"), print("printed"), print("printed", file=sys.stderr)
        assert sys.stderr.isatty() is False and sys.stdin.fileno() == 0 and file.fileno() > 2
        file.write(b"kept")
run_and_exit(command)
""")
    line = f"{shlex.join([sys.executable, str(script)])} {closed}"
    assert subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    assert written.read_bytes() == b"kept"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's pipes")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    [
        "print('a line')",
        "print('a line ' * 100_000)",
        "console.show('a table', [('a', 'row')])",
        "print('a line', file=sys.stderr)",
    ],
)
def test_a_broken_pipe_ends_a_command_as_it_ends_the_shell_s_own_tools(command, unbuffered):
    """`| head` is not an error. 141: 128 + SIGPIPE."""
    reads, writes = os.pipe()
    os.close(reads)
    where = "stderr" if "stderr" in command else "stdout"
    done = ended(
        f"from w2v_attn.cli import console\nrun_and_exit(lambda: {command})",
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        **{where: writes},
    )
    os.close(writes)
    assert done.returncode == 141
    assert not done.stdout
    assert not done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's pipes")
@pytest.mark.parametrize("sweep", [[], ["-m", "model=tiny,tiny"]], ids=["one", "a sweep"])
def test_neither_has_hydra_words_for_that(sweep, tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    line = [sys.executable, "-m", "w2v_attn", "load", *sweep]
    done = subprocess.run(line, stdout=writes, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_terminal_has_no_letters_for_is_no_error(encoding):
    """Tables contain arrows, and file names need not be Unicode."""
    done = ended(
        "from w2v_attn.cli import console\nrun_and_exit(lambda: console.show('a → b', [('caf\\udce9', '131 × ☃')]))",
        env={**os.environ, "PYTHONIOENCODING": encoding},
        encoding=encoding,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "131" in done.stdout


def test_a_broken_pipe_that_is_not_what_people_read_is_an_error():
    done = ended("def command(): raise BrokenPipeError('another')\nrun_and_exit(command)")
    assert done.returncode == 1
    assert "BrokenPipeError: another" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_what_cannot_be_printed_is_no_success():
    with open("/dev/full", "w") as full:
        done = ended("run_and_exit(lambda: print('all is well', end=''))", stdout=full)
    assert done.returncode == 120
    assert "No space left on device" in done.stderr


def test_modules_are_not_torn_down():
    ends = [
        ended(f"class A:\n    def __del__(self): print('gone', flush=True)\nkept = A()\n{end}").stdout
        for end in ("pass", "run_and_exit(lambda: None)")
    ]
    assert ends == ["gone\n", ""]


IMPORT = "import gc\nfrom w2v_attn.start_and_end import import_without_gc\n"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["run_and_exit(lambda: None)", "pass"])
def test_while_a_model_is_imported_nothing_is_collected(end):
    done = ended(f"""{IMPORT}
from w2v_attn.cli.app import MODEL_MODULES
whole = gc.get_stats()[2]["collections"]
import_without_gc(*MODEL_MODULES)
print(gc.isenabled(), gc.get_freeze_count() > 100_000, gc.get_stats()[2]["collections"] - whole)
{end}
""")
    assert done.stdout == "True True 0\n"
    # Neither nanobind about objects that nobody lets go of, nor torch about names that nobody should ask for.
    assert "leaked" not in done.stderr
    assert "deprecated" not in done.stderr


def test_disabled_garbage_collection_stays_disabled():
    done = ended(f"""{IMPORT}
gc.disable()
import_without_gc("decimal")
print(gc.isenabled(), gc.get_freeze_count() > 0)
""")
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_where_all_is_imported_nothing_is_frozen():
    assert ended(f"{IMPORT}import_without_gc('gc', 'sys')\nprint(gc.get_freeze_count())").stdout == "0\n"
