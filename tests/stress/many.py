"""Measures what a corpus of very many recordings costs beside the model: listing, planning, going on, and memory.

  PYTHONPATH=tests python tests/stress/many.py    100,000 recordings: some minutes on two cores, 2 GB of disk
  PYTHONPATH=tests python tests/stress/many.py --recordings 10000

Recordings are of 0.1 to 0.3 seconds, the checkpoint is the tiny one. Each step is a process of its own, forked from
this one, which has imported what they need; at a tenth of the number and at the number: what its memory grows by
between them is what a row costs. Prints JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from forked import fork

from w2v_attn.cli import app
from w2v_attn.corpus.listing import list_recordings

DISTINCT, IN_A_FOLDER = 50, 1000


def make_recordings(folder: Path, count: int) -> None:
    """A tree of so many files; they are names of a few of them, so that the disk holds only these."""
    random_numbers = np.random.default_rng(0)
    originals = []
    for number in range(DISTINCT):
        noise = random_numbers.standard_normal(random_numbers.integers(1600, 4800)) / 10
        originals.append(folder.parent / f"{folder.name}-original-{number}.wav")
        soundfile.write(originals[-1], noise.astype(np.float32), 16_000)
    for number in range(count):
        path = folder / f"{number // IN_A_FOLDER:03d}" / f"{number:06d}.wav"
        if number % IN_A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        os.link(originals[number % DISTINCT], path)


def make_manifests(folder: Path, count: int) -> tuple[Path, Path]:
    """So many parts of one recording of a minute, as CSV and as JSON lines."""
    soundfile.write(folder / "minute.wav", np.random.default_rng(0).standard_normal(16_000 * 60) / 10, 16_000)
    rows = [{"id": f"{n:06d}", "path": "minute.wav", "offset": n % 500 / 10, "duration": 0.2} for n in range(count)]
    with (folder / f"{count}.csv").open("w") as file:
        file.write("id,path,offset,duration\n")
        file.writelines(f"{row['id']},{row['path']},{row['offset']},{row['duration']}\n" for row in rows)
    with (folder / f"{count}.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder / f"{count}.csv", folder / f"{count}.jsonl"


def in_a_process(step: Callable[[], object]) -> dict[str, float]:
    """What a step takes, in a process that is forked from this one: seconds, those of its cores, and MB at its peak.

    What it prints is shown if it fails.
    """
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = fork(step, said)
        _, status, used = os.wait4(child, 0)
        seconds = time.monotonic() - began
        if status != 0:
            said.seek(0)
            raise RuntimeError(f"ended with {os.waitstatus_to_exitcode(status)}:\n{said.read().decode()[-2000:]}")
    return {
        "seconds": round(seconds, 2),
        "core_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
    }


def measure(work: Path, count: int, options: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every step at one number of recordings."""
    audio = work / str(count)
    make_recordings(audio, count)
    csv, jsonl = make_manifests(work, count)
    extraction = partial(
        app.main, ["extract", f"audio={audio}", f"output={work / f'{count}-features'}", "device=cpu", *options]
    )
    return {
        "nothing": in_a_process(lambda: None),
        "listing the folder": in_a_process(lambda: list_recordings(audio)),
        "listing the CSV": in_a_process(lambda: list_recordings(csv)),
        "listing the JSON lines": in_a_process(lambda: list_recordings(jsonl)),
        "extracting": in_a_process(extraction),
        "going on when all is there": in_a_process(extraction),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=100_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("overrides", nargs="*", help="options besides audio and output: key=value")
    options = parser.parse_args(arguments)
    few, many = options.recordings // 10, options.recordings
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = {str(count): measure(work, count, options.overrides) for count in (few, many)}
    growth = {
        step: round(1e6 * (found[str(many)][step]["peak_mb"] - found[str(few)][step]["peak_mb"]) / (many - few))
        for step in found[str(many)]
    }
    print(json.dumps({**found, "bytes_a_row": growth}, indent=1))


if __name__ == "__main__":
    main()
