"""Engines: whoever extracts which recordings, the same files, and a process that dies loses nothing."""

import gc
import json
import multiprocessing
import os
import signal
import struct
from dataclasses import dataclass, replace
from multiprocessing.synchronize import SemLock
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SPEECH, save, tiny_model
from test_feature_spec import save_faint

from w2v_attn import open_features
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.waveforms import find_device
from w2v_attn.extraction.engines import local_processes
from w2v_attn.extraction.engines.open_extractor import open_extractor
from w2v_attn.extraction.extracting import extract_with
from w2v_attn.extraction.extractor import MAX_BLOCKS, ExtractionJob, ExtractionTask, chunks
from w2v_attn.features.transform import FeatureTransform
from w2v_attn.run_error import RunError
from w2v_attn.runs import prefetch
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.rank import ALONE, Rank, blocks_of
from w2v_attn.runs.record import RUN

CLIPS = sorted(SPEECH.rglob("*.flac"))


def rows_of(count):
    return [Row(f"{number}.flac", CLIPS[number % len(CLIPS)]) for number in range(count)]


@dataclass(frozen=True)
class Deadly:
    """The content of a recording that kills whoever reads it; with a mark, the first one only."""

    path: Path
    mark: Path | None = None
    size: int = 0

    def __call__(self):
        if self.mark is None or not self.mark.exists():
            if self.mark is not None:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.path.read_bytes()

    def state(self):
        return "deadly"


@dataclass(frozen=True)
class Hoarding(Deadly):
    """One that takes every lock first that its process shares with others."""

    def __call__(self):
        for thing in gc.get_objects():
            if isinstance(thing, SemLock):
                thing.acquire(False)
        return super().__call__()


def fatal_once(row, mark):
    """A row that is what it was, after it has killed somebody."""
    return replace(row, content=Deadly(row.path, mark))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save(tiny_model("wav2vec2-group"), tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def job(checkpoint, tmp_path):
    def make(output, **changes):
        model = {"dtype": "float32", "device": "cpu", "backend": "auto"}
        asked = {"layers": ("final",), "max_duration": 60.0, "output": tmp_path / output}
        where = changes.pop("checkpoint", checkpoint)
        return ExtractionJob(checkpoint=where, model=model, task=ExtractionTask(**(asked | changes)))

    return make


def extract(job, rows, *, engine="local", workers=None):
    with open_extractor(job, engine=engine, workers=workers, rank=ALONE) as extractor:
        return list(extract_with(extractor, job.task, rows))


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RUN)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_chunks_are_the_list_in_order_and_the_last_ones_are_small():
    for count in (0, 1, 127, 128, 129, 100_000):
        parts = blocks_of(rows_of(count))
        found = list(chunks(parts, 3))
        assert [part for chunk in found for part in chunk] == parts
        assert all(len(chunk) <= MAX_BLOCKS for chunk in found)
        assert all(len(chunk) == 1 for chunk in found[-3:])


@pytest.mark.slow
def test_processes_make_what_one_makes_though_one_dies_and_a_recording_kills_them(job, one_thread, tmp_path):
    rows = rows_of(prefetch.ROWS_PER_BLOCK + 3)
    expected = {outcome.row.id for outcome in extract(job("one"), rows)}
    mark = tmp_path / "mark"
    rows[50] = fatal_once(rows[50], mark)
    rows[129] = replace(rows[129], content=Deadly(CLIPS[0]))
    outcomes = extract(job("two"), rows, workers=2)
    assert {outcome.row.id for outcome in outcomes} == expected
    assert len(outcomes) == len(rows)
    assert [outcome.row.id for outcome in outcomes if outcome.reason is not None] == ["129.flac"]
    assert "SIGKILL" in (tmp_path / "two" / FAILURE_LOG).read_text()
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert set(one) - set(two) == {"129.flac.safetensors"}
    # Its neighbours were computed without it, and 50 says that its source is another.
    separate = {f"{number}.flac.safetensors" for number in (50, 128, 130)} | {FAILURE_LOG}
    assert {name for name in set(two) - separate if one[name] != two[name]} == set()


def test_what_is_wrong_is_said_by_processes_as_by_one(job, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        extract(job("out", checkpoint="/absent"), rows_of(3), workers=2)
    assert not (tmp_path / "out").exists()
    extract(job("out"), rows_of(3))
    with pytest.raises(ValueError, match="another configuration"):
        extract(job("out", layers=("layer_01",)), rows_of(3), workers=2)
    with pytest.raises(ValueError, match="engine must be local or ray"):
        extract(job("out"), rows_of(3), engine="spark")
    with pytest.raises(ValueError, match="rank 0 of 2 is one process"):
        open_extractor(job("out"), engine="local", workers=2, rank=Rank(0, 2))


def test_interrupted_processes_end_with_whole_files_and_nobody_stays(job, tmp_path):
    rows, seen = rows_of(600), []
    with open_extractor(job("out"), engine="local", workers=2, rank=ALONE) as extractor:
        assert isinstance(extractor, local_processes.LocalProcesses)
        found = extract_with(extractor, job("out").task, rows, interrupted=lambda: len(seen) > 0)
        for outcome in found:
            seen.append(outcome.row.id)
        children = [member._child for member in extractor._processes]
    assert 0 < len(seen) < len(rows)
    assert not any(child.is_alive() for child in children)
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} >= {f"{name}.safetensors" for name in seen}
    assert not list((tmp_path / "out").glob(".tmp-*"))


@pytest.mark.parametrize("layout", ["mirrored", "shards"])
def test_what_a_process_that_died_left_half_written_goes_with_the_next_run(layout, job, tmp_path):
    extract(job("out", layout=layout), rows_of(3))
    left = tmp_path / "out" / ".tmp-0123456789abcdef"
    left.write_text("half")  # the run went on, and came to its end
    extract(job("out", layout=layout), rows_of(3))
    assert not left.exists()


@pytest.mark.slow
def test_a_process_that_is_killed_takes_no_lock_with_it(job):
    rows = rows_of(3)
    rows[1] = replace(rows[1], content=Hoarding(CLIPS[0]))
    outcomes = extract(job("out"), rows, workers=2)
    assert [outcome.row.id for outcome in outcomes if outcome.reason is not None] == ["1.flac"]


def test_nobody_writes_when_a_run_was_ended(job, tmp_path):
    with open_extractor(job("out"), engine="local", workers=2, rank=ALONE) as extractor:
        assert isinstance(extractor, local_processes.LocalProcesses)
        found = extract_with(extractor, job("out").task, rows_of(600))
        next(found)
        found.close()  # as where the disk is full
        assert not any(member._child.is_alive() for member in extractor._processes)
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_a_process_that_ends_within_a_word_has_died(job):
    with open_extractor(job("out"), engine="local", workers=2, rank=ALONE) as extractor:
        assert isinstance(extractor, local_processes.LocalProcesses)
        member = extractor._processes[0]
        member.stop()
        member.connection, theirs = multiprocessing.Pipe()
        os.write(theirs.fileno(), struct.pack("!i", 100) + b"half")
        theirs.close()
        with pytest.raises(RunError, match="cannot start"):
            member.wait_ready()


def test_processes_share_the_threads_of_one(job, one_thread, monkeypatch):
    made = []
    monkeypatch.setattr(
        local_processes, "LocalProcesses", lambda job, devices, threads: made.append((devices, threads))
    )
    torch.set_num_threads(4)
    for device in ("auto", "cpu"):
        if find_device(device).type == "cpu":
            asked = job("out")
            open_extractor(
                replace(asked, model={**asked.model, "device": device}), engine="local", workers=2, rank=ALONE
            )
            assert made.pop() == ([device] * 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("making", [{}, {"layer_weights": (0.5, 0.5)}], ids=str)
def test_processes_write_shards_to_one_folder(making, job, one_thread, tmp_path):
    rows = rows_of(1030)  # of two stretches
    asked = {"layers": ("layer_01", "final"), "transform": FeatureTransform(**making)}
    outcomes = extract(job("one", layout="shards", **asked), rows, workers=2)
    assert [outcome.reason for outcome in outcomes] == [None] * len(rows)
    extract(job("mirrored", **asked), rows[::50])
    found, expected = open_features(tmp_path / "one"), open_features(tmp_path / "mirrored")
    assert set(found) == {row.id for row in rows}
    for row_id in expected:
        for layer in expected[row_id].layers:
            torch.testing.assert_close(found[row_id][layer], expected[row_id][layer], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_processes_count_together_what_became_0(job, one_thread, tmp_path):
    checkpoint = str(save_faint(tmp_path / "faint"))
    asked = job("out", checkpoint=checkpoint, transform=FeatureTransform(output_dtype="float16"))
    rows = rows_of(prefetch.ROWS_PER_BLOCK + 3)
    for kept in (False, True):
        outcomes = extract(asked, rows, workers=2)
        assert {outcome.cached for outcome in outcomes} == {kept}
        frames = [outcome.result.frames for outcome in outcomes]
        assert [outcome.underflowed for outcome in outcomes] == frames
        record = json.loads((tmp_path / "out" / RUN).read_text())
        assert record["underflow"] == {"values": sum(frames), "recordings": len(rows)}


@pytest.mark.slow
def test_a_cluster_makes_what_one_process_makes_though_an_actor_dies(job, one_thread, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    folders = [str(ROOT / "tests" / name) for name in ("", "unit", "integration", "stress")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = rows_of(150)
    extract(job("one"), rows)
    rows[100] = fatal_once(rows[100], tmp_path / "mark")
    outcomes = extract(job("two"), rows, engine="ray", workers=2)
    assert not ray.is_initialized()
    assert (tmp_path / "mark").exists()
    assert [outcome.reason for outcome in outcomes if outcome.reason is not None] == []
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert {name for name in {*one, *two} if one.get(name) != two.get(name)} == {"100.flac.safetensors"}
    with pytest.raises(ValueError, match="another configuration"):
        extract(job("one", layers=("layer_01",)), rows[:3], engine="ray", workers=1)
    with open_extractor(job("three"), engine="ray", workers=1, rank=ALONE) as extractor:
        list(extract_with(extractor, job("three").task, rows[:3], interrupted=lambda: True))
        assert not ray.is_initialized()  # nobody writes when the folder is given back
