"""Kills a run at random moments until it has been killed often enough, and compares what comes out of it.

  PYTHONPATH=tests python tests/stress/killing.py --recordings 10000 --kills 200   the soak: 15 minutes on one core
  PYTHONPATH=tests python tests/stress/killing.py --faults --kills 60       with failing disks and hanging decoders
  PYTHONPATH=tests python tests/stress/killing.py model=local model.checkpoint=…          with another checkpoint
  PYTHONPATH=tests python tests/stress/killing.py --shard 2000000 layout=shards     into many shards of 2 MB
  PYTHONPATH=tests python tests/stress/killing.py --command transcribe formats=[srt,TextGrid]     or evaluate

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
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from faults.disk import CODES, Disk, disk, make_fail
from forked import fork

from w2v_attn.cli import app
from w2v_attn.extraction import shard_store
from w2v_attn.features.formats.shard_index import INDEX
from w2v_attn.runs.failure_log import FAILURE_LOG

# The list of the recordings, with texts for evaluation.
LIST = "list.csv"
FAULTS = Path(__file__).resolve().parent / "faults"
# Recordings whose decoders go wrong each time, and those where they do so once in a run and then no more.
ALWAYS = {"hold": r"/00701\.wav", "crash": r"/00353\.wav", "hoard": r"/00151\.wav"}
ONCE = {"once hang": r"403\.wav", "once crash": r"[27]5\.wav", "once abort": r"23\.wav"}


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
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.wav"))
    (folder / LIST).write_text("path,text\n" + "".join(f"{path},a text\n" for path in paths))


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


def nothing() -> None:
    """A run that is left alone."""


def start(audio: Path, output: Path, log: Path, options: Sequence[str], prepare: Callable[[], None] = nothing) -> int:
    """The command in a process of its own -> its id. options: the command first; prepare: what is done there first."""
    command, *options = options

    def step() -> None:
        prepare()
        app.main([command, f"audio={audio / LIST}", f"output={output}", "device=cpu", *options])

    with log.open("a") as said:
        return fork(step, said)


def to_the_end(
    audio: Path, output: Path, log: Path, options: Sequence[str], prepare: Callable[[], None] = nothing
) -> int:
    """Its exit code."""
    _, status = os.waitpid(start(audio, output, log, options, prepare), 0)
    return os.waitstatus_to_exitcode(status)


def decoders_fail(kinds: dict[str, str], once: Path) -> None:
    """The processes that decode find their faults; see faults/sitecustomize.py."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"FAULTS": json.dumps(kinds), "ONCE": str(once)}


def all_fails(place: Disk, chance: random.Random, once: Path) -> Callable[[], None]:
    """What makes the next run go wrong in more ways than the last one will: decoders, and half the time the disk."""
    place.mend()
    kind = chance.random()
    place.failing = kind < 0.5
    if kind < 0.25:
        place.full_soon(chance)
    code, after = chance.choice(CODES), chance.randrange(60)

    def prepare() -> None:
        decoders_fail(ALWAYS | ONCE, once)
        if 0.25 < kind < 0.5:
            make_fail(code, after)

    return prepare


def soak(
    work: Path, *, recordings: int, kills: int, seed: int, options: Sequence[str], faults: bool
) -> dict[str, object]:
    """What happened: whether both folders have the same files, and how far the run was at each kill.

    faults: beside the kills. Decoders that always go wrong do so in both folders; what went wrong once, or a disk that
    failed, must not be seen in the end.
    """
    with disk(work / "disk") if faults else contextlib.nullcontext() as place:
        return _soak(work, place, recordings=recordings, kills=kills, seed=seed, options=options)


def _soak(
    work: Path, place: Disk | None, *, recordings: int, kills: int, seed: int, options: Sequence[str]
) -> dict[str, object]:
    if torch.get_num_threads() == 1:  # threads of OpenMP's would not be in the child
        make_recordings(work / "first", 1)
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
            command, *others = options
            app.main([command, f"audio={work / 'first'}", f"output={work / 'warm'}", "device=cpu", *others])
    audio, once, log = work / "audio", work / "once", work / "log"
    killed = (place.folder if place else work) / "killed"
    make_recordings(audio, recordings)
    chance, codes, marks, limit = random.Random(f"faults {seed}"), Counter(), work / "marks", f"1.5{os.getpid():07d}"
    marks.mkdir()

    always = partial(decoders_fail, ALWAYS, marks) if place else nothing
    if place:
        options = [*options, f"audio_decoder.timeout={limit}", "audio_decoder.memory_gb=0.2"]
    began = time.monotonic()
    code = to_the_end(audio, once, log, options, always)
    needed = time.monotonic() - began
    moments, progress, cleaned = random.Random(seed), [], 0
    setup = 0.0  # seconds from the fork to the claim of the folder, as seen last
    for _ in range(kills):
        before = _sessions(killed), _changes(killed)
        prepare = all_fails(place, chance, marks) if place else nothing
        child = start(audio, killed, log, options, prepare)
        if place and place.failing and moments.random() < 0.7:  # it ends by itself, if there is anything left to write
            until = time.monotonic() + 30
            _wait(child, lambda until=until: time.monotonic() > until)
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
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        codes["killed" if ended == -signal.SIGKILL else f"exit code {ended}"] += 1
        progress.append(_there(killed))
        cleaned += sum(1 for _ in killed.rglob(".tmp-*"))
    if place:
        place.mend()
    last = to_the_end(audio, killed, log, options, always)
    expected, found = content(once), content(killed)
    time.sleep(1)
    return {
        "seconds": round(needed, 1),
        "codes": [code, last],
        "same": expected == found,
        "differ": sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))[:20],
        "files": len(expected),
        "progress": progress,
        "temporary_files_after_kills": cleaned,
        "sessions": _sessions(killed),
        "ends": dict(codes),
        "faults_of_decoders": sum(1 for _ in marks.iterdir()),
        "failed": dict(Counter(json.loads(line)["reason"] for line in (killed / FAILURE_LOG).read_text().splitlines())),
        "disk": place and ("mounted" if place.mounted else "a folder"),
        "left_behind": _decoders(limit),
    }


def _decoders(limit: str) -> int:
    """How many processes decode within this limit."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += limit.encode() in path.read_bytes()
    return found


def _wait(child: int, come: Callable[[], bool]) -> None:
    """Until something has come, or the child has ended."""
    while not come() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def _changes(output: Path) -> list[tuple[int, ...]]:
    """When the folders in it and the lines of transcripts were written to; with shards, which there are."""
    changed = [*sorted(output.glob("[0-9]")), *output.glob(".*.unfinished")]
    folders = [(path.stat().st_mtime_ns,) for path in changed]
    return [*folders, (sum(1 for _ in output.glob("features-*.safetensors")),)]


def _there(output: Path) -> int:
    """Recordings whose features or lines are there; as long as the index of shards cannot be read, none."""
    if journals := [
        *output.glob(".*.unfinished"),
        *output.glob("transcripts.jsonl"),
        *output.glob("predictions.jsonl"),
    ]:
        return max(journal.read_bytes().count(b"\n") for journal in journals)
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", default="extract", choices=["extract", "transcribe", "evaluate"])
    parser.add_argument("--recordings", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", type=int, help="bytes of a shard")
    parser.add_argument("--faults", action="store_true", help="disks and decoders go wrong as well")
    parser.add_argument("overrides", nargs="*", help="options besides audio and output: key=value")
    options = parser.parse_args(arguments)
    if options.shard is not None:
        shard_store.SHARD_BYTES = options.shard
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(
            Path(temporary),
            recordings=options.recordings,
            kills=options.kills,
            seed=options.seed,
            options=[options.command, *options.overrides],
            faults=options.faults,
        )
        if found["codes"] != [1, 1]:
            found["log"] = (Path(temporary) / "log").read_text()[-2000:]
    print(json.dumps(found))
    sys.exit(not found["same"] or bool(found["left_behind"]))


if __name__ == "__main__":
    main()
