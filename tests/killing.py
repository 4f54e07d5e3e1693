"""Kills an extraction at random moments until it has been killed often enough, and compares what comes out of it.

  python tests/killing.py --recordings 10000 --kills 200      the soak: about a quarter of an hour on a core
  python tests/killing.py model=local model.checkpoint=…      with another checkpoint than the tiny one
  python tests/killing.py --shard 2000000 layout=shards       into shards of 2 MB, that there are many

The commands are forked from this process, which has imported what they need: so a kill costs no start of Python's.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import soundfile
import torch

from w2v_attn import app, encoder, extraction  # noqa: F401 - the most that a command needs, imported before it is forked
from w2v_attn.extraction import store_shards
from w2v_attn.feature_sets.layouts.shard_files import INDEX


def make_recordings(folder: Path, count: int, *, seed: int = 0) -> None:
    """Noise of a tenth of a second to one second; every 50th file is none that can be used."""
    random_numbers = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 50 == 49:
            path.write_text("no audio")
        else:
            noise = random_numbers.standard_normal(random_numbers.integers(1600, 16_000)) / 10
            soundfile.write(path, noise.astype(np.float32), 16_000)


def content(output: Path) -> dict[str, str]:
    """Hash of every file of an output folder by its name; of run.json only what does not speak of time.

    Of the index of shards what is in it: SQLite also counts how often it was opened to be written.
    """
    found = {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file() and path.name not in ("run.json", INDEX)
    }
    if (output / INDEX).exists():
        with closing(sqlite3.connect(output / INDEX)) as index:
            found[INDEX] = hashlib.sha256("\n".join(index.iterdump()).encode()).hexdigest()
    record = json.loads((output / "run.json").read_text())
    return {**found, "run.json": json.dumps([record["status"], record["fingerprint"], record["batch_frames"]])}


def start(audio: Path, output: Path, log: Path, options: Sequence[str]) -> int:
    """The command in a process of its own -> its id."""
    if (child := os.fork()) > 0:
        return child
    code = 99
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        app.main(["extract", f"audio={audio}", f"output={output}", "device=cpu", *options])
    except SystemExit as done:
        code = int(str(done.code))
    finally:
        sys.stdout.flush()
        os._exit(code)


def to_the_end(audio: Path, output: Path, log: Path, options: Sequence[str]) -> int:
    """Its exit code."""
    _, status = os.waitpid(start(audio, output, log, options), 0)
    return os.waitstatus_to_exitcode(status)


def soak(work: Path, *, recordings: int, kills: int, seed: int, options: Sequence[str]) -> dict[str, object]:
    """What happened: whether both folders have the same files, and how far the run was at each kill."""
    if torch.get_num_threads() == 1:  # threads of OpenMP's would not be in the child
        make_recordings(work / "first", 1)
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
            app.main(["extract", f"audio={work / 'first'}", f"output={work / 'warm'}", "device=cpu", *options])
    audio, once, killed, log = work / "audio", work / "once", work / "killed", work / "log"
    make_recordings(audio, recordings)
    began = time.monotonic()
    code = to_the_end(audio, once, log, options)
    needed = time.monotonic() - began
    moments, progress, cleaned = random.Random(seed), [], 0
    setup = 0.0  # seconds from the fork to the claim of the folder, as seen last
    for _ in range(kills):
        before = _sessions(killed), _changes(killed)
        child = start(audio, killed, log, options)
        # A fifth of them before the folder is claimed, a fifth then, a fifth after a file was written, and the others
        # just after it, in the middle of the files of a batch.
        moment = moments.random()
        began = time.monotonic()
        if moment < 0.2:
            time.sleep(moments.uniform(0, setup))
        else:
            _wait(child, lambda before=before: _sessions(killed) != before[0])
            setup = time.monotonic() - began
            if moment > 0.4:
                _wait(child, lambda before=before: _changes(killed) != before[1])
            time.sleep(moments.uniform(0, 0.02 if moment > 0.6 else 2 * needed / kills))
        os.kill(child, signal.SIGKILL)  # it is there, for nobody has waited for its end
        os.waitpid(child, 0)
        progress.append(_there(killed))
        cleaned += sum(1 for _ in killed.rglob(".tmp-*"))
    last = to_the_end(audio, killed, log, options)
    expected, found = content(once), content(killed)
    return {
        "seconds": round(needed, 1),
        "codes": [code, last],
        "same": expected == found,
        "differ": sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))[:20],
        "files": len(expected),
        "progress": progress,
        "temporary_files_after_kills": cleaned,
        "sessions": _sessions(killed),
    }


def _wait(child: int, come: Callable[[], bool]) -> None:
    """Until something has come, or the child has ended."""
    while not come() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def _changes(output: Path) -> list[tuple[int, ...]]:
    """When the folders in it were written to; with shards, which there are."""
    folders = [(folder.stat().st_mtime_ns,) for folder in sorted(output.glob("[0-9]"))]
    return [*folders, (sum(1 for _ in output.glob("features-*.safetensors")),)]


def _there(output: Path) -> int:
    """Recordings whose features are there; as long as the index of shards cannot be read, none."""
    if not (output / INDEX).exists():
        return sum(1 for _ in output.rglob("*.safetensors"))
    name = f"file:{output / INDEX}?mode=ro"  # it is the command that is to undo what a kill left in the index
    with closing(sqlite3.connect(name, uri=True)) as index, contextlib.suppress(sqlite3.OperationalError):
        return index.execute("SELECT COUNT(*) FROM recordings").fetchone()[0]
    return 0


def _sessions(output: Path) -> int:
    try:
        return json.loads((output / "run.json").read_text())["sessions"]
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", type=int, help="bytes of a shard")
    parser.add_argument("overrides", nargs="*", help="what the command is told beside audio and output: key=value")
    options = parser.parse_args()
    if options.shard is not None:
        store_shards.SIZE = options.shard
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(
            Path(temporary),
            recordings=options.recordings,
            kills=options.kills,
            seed=options.seed,
            options=options.overrides,
        )
        if found["codes"] != [1, 1]:
            found["log"] = (Path(temporary) / "log").read_text()[-2000:]
    print(json.dumps(found))
    sys.exit(not found["same"])
