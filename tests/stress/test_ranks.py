"""Several ranks write to one folder: the result is what one process writes."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SPEECH
from hypothesis import given
from hypothesis import strategies as st

from w2v_attn import load_encoder, open_features
from w2v_attn.cli import extract
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction import mirrored_store, shard_store
from w2v_attn.extraction.extracting import extract_with
from w2v_attn.extraction.extractor import ExtractionTask, InProcessExtractor
from w2v_attn.features.formats.shard_index import INDEX
from w2v_attn.run_error import RunError
from w2v_attn.runs import failure_log, prefetch
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.locks import LOCK, InUseError, Lock, acquire_lock
from w2v_attn.runs.rank import ALONE, RANKS, Rank, blocks_of, read_rank
from w2v_attn.runs.record import RUN


@given(st.integers(0, 3000), st.integers(1, 9), st.sampled_from([1, 1024]))
def test_every_row_has_one_rank_and_with_all_of_its_block(count, world, rows_per_group):
    rows = [Row(str(number), SPEECH) for number in range(count)]
    parts = blocks_of(rows, rows_per_group)
    assert [row for part in parts for row in part.rows] == rows
    assert [part.number for part in parts] == list(range(len(parts)))
    for part in parts[:-1]:  # so that batches end where parts do
        assert len(part.rows) % prefetch.ROWS_PER_BLOCK == 0
        assert len(part.rows) % rows_per_group == 0
    ranks = [Rank(rank, world).select(parts) for rank in range(world)]
    assert sorted((part for rank in ranks for part in rank), key=lambda part: part.number) == parts
    assert max(map(len, ranks)) <= min(map(len, ranks)) + 1


def test_a_rank_is_what_is_given_or_what_the_launcher_says():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    srun = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
    assert read_rank(None, None, {}) == ALONE
    assert read_rank(None, None, torchrun) == Rank(5, 8, 1)
    assert read_rank(None, None, srun) == Rank(2, 4, 0)
    assert read_rank(1, 3, torchrun) == Rank(1, 3)
    # A batch script of SLURM's without srun is one process, whatever was reserved for it.
    assert read_rank(None, None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == ALONE


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["rank=3", "world_size=3"], "rank must be from 0 to 2 with world_size=3, got 3"),
        (["rank=-1", "world_size=2"], "rank must be from 0 to 1 with world_size=2, got -1"),
        (["rank=1", "world_size=0"], "world_size must be 1 or above, got 0"),
        (["rank=1"], "rank=1 is given without world_size: give both, such as rank=0 world_size=8"),
        (["world_size=2"], "world_size=2 is given without rank: give both, such as rank=0 world_size=8"),
        (["rank=one", "world_size=2"], "rank must be a whole number, got one"),
        (["rank=1", "world_size=2.5"], "world_size must be a whole number, got 2.5"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_rank_that_cannot_be_is_refused(given, said, call, tmp_path, monkeypatch):
    # What torchrun says of one is not put beside what is given of the other.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call("extract", f"output={tmp_path / 'out'}", *given)
    assert (code, err.strip()) == (2, said)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(prefetch, "ROWS_PER_BLOCK", 4)
    monkeypatch.setattr("w2v_attn.runs.rank.ROWS_PER_BLOCK", 4)


@pytest.fixture
def rows(tmp_path, small_blocks):
    """Clips, and two that are none, of different ranks."""
    rows = list(list_recordings(SPEECH).rows[:14])
    for place in (3, 5):
        (tmp_path / f"{place}.wav").write_text("no audio")
        rows.insert(place, Row(f"{place}.wav", tmp_path / f"{place}.wav"))
    return rows


@pytest.fixture
def start(group_checkpoint, rows, tmp_path, monkeypatch):
    """Begins the extraction of a rank."""
    encoder = load_encoder(group_checkpoint)
    monkeypatch.setattr(encoder, "frame_budget", lambda: 150)

    def begin(output, rank, *, layers=("final",), layout="mirrored", **options):
        task = ExtractionTask(output=tmp_path / output, layers=layers, max_duration=60, layout=layout)
        return extract_with(InProcessExtractor(encoder, task), task, rows, rank=rank, **options)

    return begin


def content(folder):
    """All files but those that speak of time and of who did it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RUN)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if RANKS not in path.parts}


def record(folder):
    return json.loads((folder / RUN).read_text())


def ids(rows, rank):
    return {row.id for part in rank.select(blocks_of(rows)) for row in part.rows}


def failed(folder):
    return [json.loads(line)["id"] for line in (folder / FAILURE_LOG).read_text().splitlines()]


def test_ranks_one_after_the_other_or_at_once_make_what_one_process_makes(start, rows, tmp_path):
    list(start("one", ALONE))
    for rank in (Rank(1, 2), Rank(0, 2)):
        list(start("after", rank))
    runs = [start("at once", Rank(rank, 3)) for rank in range(3)]
    while runs:  # in turns
        runs = [run for run in runs if next(run, None) is not None]
    assert content(tmp_path / "after") == content(tmp_path / "at once") == content(tmp_path / "one")
    assert failed(tmp_path / "after") == ["3.wav", "5.wav"]
    whole = record(tmp_path / "one")
    for folder in ("after", "at once"):
        found = record(tmp_path / folder)
        assert found["status"] == "done"
        assert found["counts"] == whole["counts"]
        assert found["fingerprint"] == whole["fingerprint"]
        assert found["session"]["audio_seconds"] == pytest.approx(whole["session"]["audio_seconds"], abs=0.01)


def test_the_record_says_running_until_the_last_rank_has_ended(start, tmp_path):
    first, second = start("out", Rank(0, 2)), start("out", Rank(1, 2))
    next(first), next(second)
    list(first)
    assert record(tmp_path / "out")["status"] == "running"
    list(second)
    assert record(tmp_path / "out")["status"] == "done"


def test_a_rank_that_ended_early_is_taken_up_by_a_process_that_takes_all(start, rows, tmp_path):
    list(start("one", ALONE))
    stopped = []
    list(start("out", Rank(0, 2), interrupted=lambda: len(stopped) > 0 or stopped.append(1)))
    assert record(tmp_path / "out")["status"] == "running"  # the other rank was never begun
    assert content(tmp_path / "out") != content(tmp_path / "one")
    list(start("out", ALONE))
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert not (tmp_path / "out" / RANKS).exists() or not any((tmp_path / "out" / RANKS).iterdir())
    assert record(tmp_path / "out")["status"] == "done"


def test_who_may_write_to_a_folder_at_once(start, tmp_path):
    first = start("out", Rank(0, 2))
    next(first)
    with pytest.raises(ValueError, match="in use"):
        next(start("out", ALONE))
    with pytest.raises(ValueError, match=r"in use.*process"):
        next(start("out", Rank(0, 2)))
    with pytest.raises(ValueError, match=r"in use.*0-of-2.*1-of-3"):
        next(start("out", Rank(1, 3)))
    with pytest.raises(ValueError, match="another configuration"):
        next(start("out", Rank(1, 2), layers=("layer_01",)))
    other = start("out", Rank(1, 2))
    next(other)
    list(first)
    with pytest.raises(ValueError, match="in use"):  # the first one has not taken the lock with it
        next(start("out", ALONE))
    list(other)
    alone = start("out", ALONE)
    next(alone)
    with pytest.raises(ValueError, match="in use"):
        next(start("out", Rank(0, 2)))
    list(alone)


def test_another_world_size_goes_on_and_forgets_no_failure(start, rows, tmp_path):
    list(start("one", ALONE))
    list(start("out", Rank(1, 2)))
    (tmp_path / "out" / FAILURE_LOG).unlink()  # as where it was killed before it could put it together
    list(start("out", Rank(0, 3)))
    assert set(failed(tmp_path / "out")) == {"3.wav", "5.wav"} - {
        row.id for row in rows if row.id not in ids(rows, Rank(1, 2)) | ids(rows, Rank(0, 3))
    }
    list(start("out", Rank(1, 3)))
    list(start("out", Rank(2, 3)))
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_a_failure_that_is_mended_leaves_the_ledger_whoever_mends_it(start, rows, tmp_path):
    for rank in range(2):
        list(start("out", Rank(rank, 2)))
    shutil.copy(rows[0].path, tmp_path / "3.wav")
    list(start("out", Rank(0, 2)))
    list(start("out", Rank(1, 2)))
    assert failed(tmp_path / "out") == ["5.wav"]
    shutil.copy(rows[0].path, tmp_path / "5.wav")
    list(start("out", ALONE))
    assert not (tmp_path / "out" / FAILURE_LOG).exists()
    list(start("out", Rank(0, 2)))
    assert not (tmp_path / "out" / FAILURE_LOG).exists()


def test_a_rank_refused_leaves_nothing(start, tmp_path):
    (tmp_path / "out").mkdir()
    list(start("out", ALONE))
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="another configuration"):
        next(start("out", Rank(0, 2), layers=("layer_01",)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != RANKS) == before


def test_a_rank_that_features_refuse_leaves_the_record_as_it_was(start, tmp_path):
    list(start("out", ALONE))
    (tmp_path / "out" / RUN).unlink()
    with pytest.raises(ValueError, match="another configuration"):
        list(start("out", Rank(0, 2), layers=("layer_01",)))
    assert not (tmp_path / "out" / RUN).exists()
    list(start("out", Rank(0, 2)))
    assert record(tmp_path / "out")["fingerprint"]["layers"] == "final"


def test_without_locks_a_rank_leaves_alone_what_others_write(start, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    runs = [start("out", Rank(rank, 2)) for rank in range(2)]
    next(runs[0])
    written = tmp_path / "out" / ".tmp-0123456789abcdef"
    written.write_text("by the other one")
    next(runs[1])
    assert written.exists()
    for run in runs:
        list(run)
    assert record(tmp_path / "out")["status"] == "done"
    assert record(tmp_path / "out")["counts"]["not_reached"] == 0


def test_nobody_comes_while_a_rank_leaves(start, tmp_path, monkeypatch):
    left, release = [], Lock.release

    def watched(lock):
        if lock._path == tmp_path / "out" / LOCK:
            with pytest.raises(InUseError):
                acquire_lock(tmp_path / "out" / RANKS / LOCK)
            left.append(lock)
        release(lock)

    monkeypatch.setattr(Lock, "release", watched)
    list(start("out", Rank(0, 2)))
    assert len(left) == 1
    assert not (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out" / RANKS / LOCK).exists()


def test_ranks_of_shards_go_on_on_another_machine_when_theirs_is_gone(start, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_store, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(shard_store.ShardStore, "rows_per_group", 4)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        runs = [start("out", Rank(rank, 2), layout="shards") for rank in range(2)]
        for run in runs:
            next(run)
        records = {path: path.read_bytes() for path in (tmp_path / "out").rglob(RUN)}
        for run in runs:
            run.close()
    for path, said in records.items():  # as where both were killed
        path.write_bytes(said)
    runs = [start("out", Rank(rank, 2), layout="shards") for rank in range(2)]
    while runs:
        runs = [run for run in runs if next(run, None) is not None]
    assert record(tmp_path / "out")["status"] == "done"


def test_ranks_of_shards_make_what_one_process_makes_on_one_machine_only(start, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_store, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(shard_store.ShardStore, "rows_per_group", 4)
    list(start("one", ALONE, layout="shards"))
    runs = [start("two", Rank(rank, 2), layout="shards") for rank in range(2)]
    next(runs[0])
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ValueError, match="several machines cannot"):
            next(start("two", Rank(1, 2), layout="shards"))
    while runs:
        runs = [run for run in runs if next(run, None) is not None]
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert {name: one[name] for name in one if name != INDEX} == {name: two[name] for name in two if name != INDEX}
    first, second = open_features(tmp_path / "one"), open_features(tmp_path / "two")
    assert set(first) == set(second) == {row.id for row in rows} - {"3.wav", "5.wav"}
    assert all(torch.equal(first[name]["final"], second[name]["final"]) for name in first)


def full(*_):
    raise RunError("cannot write: No space left on device")


@pytest.mark.parametrize("torchrun", [False, True])
def test_recordings_that_failed_are_told_by_the_last_rank_and_end_nobody_else(
    torchrun, small_blocks, call, tmp_path, monkeypatch
):
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    shutil.copytree(SPEECH, tmp_path / "audio")
    for name in "ab":
        (tmp_path / "audio" / f"{name}.wav").write_text("no audio")
    codes = [call("extract", "audio=audio", "output=out", f"rank={rank}", "world_size=2")[0] for rank in (0, 1, 1)]
    assert codes == ([0, 0, 0] if torchrun else [0, 1, 1])
    assert len(failed(tmp_path / "out")) == 2


def test_a_rank_that_is_stopped_is_no_success_of_all(small_blocks, call, tmp_path, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr(mirrored_store.MirroredStore, "write", full)
        code, _, err = call("extract", "output=out", "rank=0", "world_size=2")
    assert code == 1
    assert "stopped: cannot write: No space left" in err
    code, out, _ = call("extract", "output=out", "rank=1", "world_size=2")
    assert code == 0  # nobody knows yet whether the other one is started again
    assert record(tmp_path / "out")["status"] == "running"
    code, out, _ = call("extract", "output=out", "rank=0", "world_size=2")
    assert code == 0
    assert "2 of 2" in out
    assert record(tmp_path / "out")["status"] == "done"


def test_the_last_rank_says_that_one_beside_it_was_stopped(start, tmp_path, monkeypatch):
    first, second = start("out", Rank(0, 2)), start("out", Rank(1, 2))
    next(first), next(second)
    with monkeypatch.context() as disk:
        disk.setattr(failure_log.FailureLog, "note", full)
        with pytest.raises(RunError):
            list(first)
    list(second)
    found = record(tmp_path / "out")
    assert found["status"] == "stopped"
    assert found["counts"]["not_reached"] > 0
    assert extract._conclude_ranks(tmp_path / "out", 0, "float32") == 1


def test_a_longer_list_is_not_done_before_every_rank_has_gone_through_it(start, rows, tmp_path):
    extra = rows[8:]
    del rows[8:]
    for rank in range(2):
        list(start("out", Rank(rank, 2)))
    assert record(tmp_path / "out")["status"] == "done"
    rows += extra
    list(start("out", Rank(0, 2)))
    assert record(tmp_path / "out")["status"] == "running"
    list(start("out", Rank(1, 2)))
    assert record(tmp_path / "out")["status"] == "done"
    assert record(tmp_path / "out")["counts"]["not_reached"] == 0


@pytest.mark.slow
def test_torchruns_processes_make_what_one_makes_though_one_was_killed(call, one_thread, tmp_path):
    audio = tmp_path / "list.csv"
    clips = sorted(SPEECH.rglob("*.flac"))
    lines = [f"{number},{clips[number % len(clips)]}" for number in range(200)]
    audio.write_text("\n".join(["id,path", *lines]))
    command = ["extract", f"audio={audio}", f"root={ROOT}"]
    # One thread, as torchrun gives to each of its processes: another number of them gives other last bits.
    assert call(*command, f"output={tmp_path / 'one'}")[0] == 0
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "w2v_attn"]
    torchrun = [sys.executable, *run, *command, f"output={tmp_path / 'two'}"]
    killed = subprocess.Popen(torchrun, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any((tmp_path / "two").rglob("*.safetensors")):
        assert killed.poll() is None
        time.sleep(0.02)
    holder = next((tmp_path / "two" / RANKS).glob("*-of-2/.lock")).read_text()
    os.kill(int(holder.split()[1]), signal.SIGKILL)
    assert killed.wait(60) != 0
    subprocess.run(torchrun, check=True, capture_output=True, cwd=ROOT)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert record(tmp_path / "two")["counts"]["not_reached"] == 0
