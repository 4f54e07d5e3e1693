"""Extraction into shards: the laws of runs that survive, and shards that depend on the list alone."""

import errno
import json
import multiprocessing
import os
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import killing
import pytest
import soundfile
import torch
from conftest import SPEECH
from started import Started

from w2v_attn import load_encoder, open_features, whole_files
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.extraction import extracting, shard_store
from w2v_attn.extraction.computing import compute_features
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.extraction.shard_store import ROWS_PER_GROUP, ShardStore
from w2v_attn.features.formats import shard_index
from w2v_attn.features.formats.shard_index import INDEX, ShardIndex
from w2v_attn.run_error import RunError
from w2v_attn.runs import prefetch, row_reader
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.record import RUN


@pytest.fixture
def encoder(group_checkpoint, monkeypatch):
    """With batches of two or three of the clips, stretches of four, and shards of about two."""
    made = load_encoder(group_checkpoint)
    monkeypatch.setattr(made, "frame_budget", lambda: 150)
    monkeypatch.setattr(prefetch, "ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(prefetch, "WINDOW", 1)  # the windows of a block are the same ones wherever a list begins
    monkeypatch.setattr(shard_store, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(ShardStore, "rows_per_group", 4)
    monkeypatch.setattr("w2v_attn.runs.rank.ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(shard_store, "SHARD_BYTES", 8000)
    return made


@pytest.fixture
def rows():
    return list_recordings(SPEECH).rows[:10]


@pytest.fixture
def extract(encoder, rows, tmp_path):
    """Runs an extraction to its end -> its outcomes in the order of the rows."""

    def run(output, *, rows=rows, layers=("final",), layout="shards", **options):
        made = extracting.extract_corpus(
            encoder, rows, tmp_path / output, layers=layers, layout=layout, max_duration=60, **options
        )
        return sorted(made, key=lambda outcome: rows.index(outcome.row))

    return run


def content(folder):
    """Bytes of all files by name, but for run.json, which speaks of time; of the index the rows of its tables."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (RUN, INDEX))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    with closing(sqlite3.connect(folder / INDEX)) as index:
        return {**found, INDEX: "\n".join(index.iterdump())}


def shards(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_stretches_end_where_batches_do():
    """Outcomes come block by block: so a stretch of some blocks is complete before the next one has anything."""
    assert ROWS_PER_GROUP % prefetch.ROWS_PER_BLOCK == 0


def test_shards_hold_what_a_file_for_each_recording_holds(extract, call, tmp_path):
    extract("mirrored", layout="mirrored")
    outcomes = extract("out")
    assert len(shards(tmp_path / "out")) > 4
    assert all(outcome.result.path.is_file() for outcome in outcomes)
    found, expected = open_features(tmp_path / "out"), open_features(tmp_path / "mirrored")
    assert found.layout == "shards"
    assert set(found) == set(expected)
    for id in expected:
        assert torch.equal(found[id]["final"], expected[id]["final"])
        assert torch.equal(found.times(id, "final"), expected.times(id, "final"))
        assert found.metadata(id) == expected.metadata(id)
    assert call("convert", f"features={tmp_path / 'out'}", f"output={tmp_path / 'back'}", "layout=mirrored")[0] == 0
    for path in (tmp_path / "mirrored").rglob("*.safetensors"):
        assert (tmp_path / "back" / path.relative_to(tmp_path / "mirrored")).read_bytes() == path.read_bytes()


def test_a_second_run_computes_nothing_and_changes_nothing(extract, encoder, tmp_path, monkeypatch):
    first = extract("out")
    before = content(tmp_path / "out")
    monkeypatch.setattr(encoder, "extract", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(row_reader, "read_row", lambda *_, **__: pytest.fail("read again"))
    second = extract("out")
    assert content(tmp_path / "out") == before
    assert [outcome.result for outcome in second] == [outcome.result for outcome in first]
    assert all(outcome.cached for outcome in second)


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_files_of_one_that_was_not(tmp_path):
    options = ["--recordings=100", "--kills=4", "--shard=160000", "layout=shards"]
    run = Started(options, tmp_path / "said", main=killing.main)
    assert run.end(100) == 0, run.said()
    found = json.loads(run.said().splitlines()[-1])
    assert found["codes"] == [1, 1]  # some of the recordings are none
    assert found["files"] > 6 + 3
    assert found["sessions"] > 2


def test_whatever_shards_are_left_the_others_come_back_to_the_bit(extract, tmp_path):
    extract("once")
    whole = content(tmp_path / "once")
    names = shards(tmp_path / "once")
    for missing in ({0}, {1, 2}, {len(names) - 1}, set(range(len(names)))):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "once", tmp_path / "out")
        for number in missing:
            (tmp_path / "out" / names[number]).unlink()
        outcomes = extract("out")
        assert {o.result.path.name for o in outcomes if not o.cached} == {names[number] for number in missing}
        assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("damage", ["cut short", "empty", "longer", *range(0, 700, 233)])
def test_a_damaged_shard_is_computed_again(extract, tmp_path, damage, caplog):
    extract("out")
    whole = content(tmp_path / "out")
    path = tmp_path / "out" / shards(tmp_path / "out")[1]
    data = bytearray(path.read_bytes())
    if isinstance(damage, int):  # a bit of the header, and of its length
        data[damage] ^= 1 << damage % 7
    path.write_bytes({"cut short": data[:-1], "empty": b"", "longer": data + b"\0"}.get(damage, data))
    outcomes = extract("out")
    assert 0 < sum(not outcome.cached for outcome in outcomes) < len(outcomes)
    assert content(tmp_path / "out") == whole
    assert "in a damaged shard: computed again" in caplog.text


def test_an_interruption_at_any_batch_drops_what_is_no_shard_yet(extract, encoder, rows, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shard_store, "SHARD_BYTES", 1 << 30)  # a shard for each stretch, of two batches
    extract("once")
    whole = content(tmp_path / "once")
    right = encoder.extract
    for batches in range(1, 7):
        begun = []
        monkeypatch.setattr(encoder, "extract", lambda *a, begun=begun: begun.append(1) or right(*a))
        told = extract("out", interrupted=lambda begun=begun, batches=batches: len(begun) >= batches)
        assert {outcome.row.id for outcome in told} == set(open_features(tmp_path / "out"))
        counts = json.loads((tmp_path / "out" / RUN).read_text())["counts"]
        assert counts["written"] + counts["kept"] == len(told)
        left = content(tmp_path / "out")
        assert all(whole[name] == left[name] for name in left if name != INDEX)
    assert "2 recordings will be computed again: their shard was not full" in caplog.text
    assert len(told) == len(rows)
    assert content(tmp_path / "out") == whole


def test_what_is_in_a_shard_does_not_depend_on_threads(extract, tmp_path, monkeypatch):
    import random
    import time

    extract("once")
    right = ShardStore.write

    def slow(*arguments):
        time.sleep(random.random() / 50)
        return right(*arguments)

    monkeypatch.setattr(ShardStore, "write", slow)
    extract("out")
    assert content(tmp_path / "out") == content(tmp_path / "once")


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_step_leaves_nothing_partial_and_the_run_resumes(extract, tmp_path, code):
    extract("once")
    whole = content(tmp_path / "once")
    ended = 0
    for step in range(100):
        left = [step]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(whole_files.os, "fsync", _failing(os.fsync, left, code))
            patched.setattr(whole_files.os, "replace", _failing(os.replace, left, code))
            patched.setattr(ShardIndex, "add", _failing(ShardIndex.add, left, code))
            try:
                extract("out")
            except (RunError, ValueError) as error:
                ended += os.strerror(code) in str(error)
        if (tmp_path / "out" / INDEX).exists():
            found = content(tmp_path / "out")
            assert all(whole[name] == found[name] for name in found if name != INDEX), f"step {step}"
            with closing(sqlite3.connect(tmp_path / "out" / INDEX)) as index:
                known = {name for (name,) in index.execute("SELECT name FROM shards")}
            assert known <= set(shards(tmp_path / "out")), f"step {step}"
        if step % 5 == 0:
            extract("out")
            assert content(tmp_path / "out") == whole, f"step {step}"
        if left[0] >= 0:
            break
    assert step > 3 * 5
    assert ended > 3 * 5


def _failing(function, left, code):
    def call(*arguments):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(code, os.strerror(code))
        return function(*arguments)

    return call


def test_a_shard_that_a_kill_kept_out_of_the_index_comes_in_and_a_lost_index_comes_back(extract, tmp_path, encoder):
    extract("out")
    whole = content(tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / INDEX)) as index, index:
        ((number,),) = index.execute("SELECT MIN(number) FROM shards")
        index.execute("DELETE FROM recordings WHERE shard = ?", (number,))
        index.execute("DELETE FROM shards WHERE number = ?", (number,))
    assert all(outcome.cached for outcome in extract("out"))
    assert content(tmp_path / "out") == whole
    (tmp_path / "out" / INDEX).unlink()
    assert all(outcome.cached for outcome in extract("out"))
    assert content(tmp_path / "out") == whole


def test_features_can_be_read_after_a_kill_in_the_middle_of_a_transaction(extract, tmp_path):
    extract("out")
    before = list(open_features(tmp_path / "out"))
    process = multiprocessing.get_context("fork").Process(target=_die_writing, args=(tmp_path / "out",))
    process.start()
    process.join()
    assert (tmp_path / "out" / f"{INDEX}-journal").stat().st_size > 0
    index = sqlite3.connect(f"file:{tmp_path / 'out' / INDEX}?mode=ro", uri=True)
    with closing(index), pytest.raises(sqlite3.OperationalError):  # so this test can fail
        index.execute("SELECT COUNT(*) FROM recordings").fetchall()
    assert list(open_features(tmp_path / "out")) == before


def _die_writing(folder):
    index = ShardIndex(folder)
    index.query("PRAGMA cache_size = 1")  # so that what is written does not wait for the end of the transaction
    with index.transaction() as connection:
        connection.execute("DELETE FROM recordings")
        connection.executemany("INSERT INTO about VALUES (?, ?)", [(str(n), "x" * 1000) for n in range(1000)])
        os._exit(1)


def test_an_index_that_is_damaged_is_told_with_the_way_out(extract, tmp_path):
    extract("out")
    whole = content(tmp_path / "out")
    index = tmp_path / "out" / INDEX
    index.write_bytes(b"hello" * 1000)
    with pytest.raises(RunError, match=r"index\.sqlite cannot be read.* Remove it, and the same command rebuilds it"):
        extract("out")
    index.unlink()
    assert all(outcome.cached for outcome in extract("out"))
    assert content(tmp_path / "out") == whole


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, clip in zip("abcdef", list_recordings(SPEECH).rows, strict=False):
        shutil.copy(clip.path, folder / f"{name}.flac")
    return folder


def test_what_failed_is_tried_again_and_comes_into_another_shard_of_its_stretch(extract, audio, tmp_path):
    good = (audio / "b.flac").read_bytes()
    (audio / "b.flac").write_text("no audio")
    rows = list_recordings(audio).rows
    extract("out", rows=rows)
    before = content(tmp_path / "out")
    assert [o.reason is None for o in extract("out", rows=rows)] == [True, False, True, True, True, True]
    assert content(tmp_path / "out") == before
    (audio / "b.flac").write_bytes(good)
    outcomes = extract("out", rows=rows)
    assert [outcome.cached for outcome in outcomes] == [True, False, True, True, True, True]
    assert outcomes[1].result.path.name.startswith("features-000000-")
    after = content(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name.endswith(".safetensors"))
    assert FAILURE_LOG not in after
    assert sorted(open_features(tmp_path / "out")) == [f"{name}.flac" for name in "abcdef"]


def test_a_source_that_was_changed_is_computed_again_and_leaves_nothing_where_it_is_no_audio_now(
    extract, audio, tmp_path
):
    rows = list_recordings(audio).rows
    extract("out", rows=rows)
    samples, rate = soundfile.read(audio / "b.flac")
    soundfile.write(audio / "b.flac", samples / 2, rate)
    assert [outcome.cached for outcome in extract("out", rows=rows)] == [True, False, True, True, True, True]
    extract("once", rows=rows)
    ours, theirs = open_features(tmp_path / "out"), open_features(tmp_path / "once")
    assert torch.equal(ours["b.flac"]["final"], theirs["b.flac"]["final"])
    assert ours.metadata("b.flac") == theirs.metadata("b.flac")
    (audio / "b.flac").write_text("no audio any more")
    extract("out", rows=rows)
    assert "b.flac" not in open_features(tmp_path / "out")


def test_a_list_that_has_grown_computes_what_is_new(extract, audio, tmp_path):
    shutil.move(audio / "a.flac", tmp_path / "away.flac")
    extract("out", rows=list_recordings(audio).rows)
    shutil.move(tmp_path / "away.flac", audio / "a.flac")
    rows = list_recordings(audio).rows
    assert [outcome.cached for outcome in extract("out", rows=rows)] == [False, True, True, True, True, True]
    assert len(open_features(tmp_path / "out")) == 6


def test_other_layouts_and_configurations_are_kept_apart(extract, call, tmp_path):
    extract("out")
    before = content(tmp_path / "out")
    extract("mirrored", layout="mirrored")
    for output, layout, said in [
        ("out", "mirrored", "layout: was shards, now not asked for"),
        ("mirrored", "shards", "layout: was not asked for, now shards"),
    ]:
        with pytest.raises(ValueError, match=said):
            extract(output, layout=layout)
        (tmp_path / output / RUN).unlink()  # the folder says it itself
        with pytest.raises(ValueError, match="name another output"):
            extract(output, layout=layout)
        assert not (tmp_path / output / RUN).exists()
    with pytest.raises(ValueError, match="of another configuration"):
        extract("out", layers=("layer_01",))
    assert content(tmp_path / "out") == before
    assert call("convert", f"features={tmp_path / 'out'}", f"output={tmp_path / 'converted'}")[0] == 0
    with pytest.raises(ValueError, match="holds a conversion: name another output"):
        extract("converted")
    code, _, err = call("extract", f"audio={SPEECH}", "layout=hdf5")
    assert code == 2
    assert "w2v-attn convert features=… layout=hdf5" in err
    assert not (tmp_path / "features").exists()


def test_a_name_that_is_not_unicode_concerns_one_recording(extract, rows, tmp_path):
    outcomes = extract("out", rows=(Row("caf\udce9", rows[0].path), Row("fine", rows[1].path)))
    assert "not Unicode" in outcomes[0].reason
    assert list(open_features(tmp_path / "out")) == ["fine"]


def test_several_processes_write_what_one_does(extract, encoder, rows, tmp_path):
    """Each has stretches of its own; whoever comes first, shards and index are those of a single process."""
    extract("once")
    whole = content(tmp_path / "once")
    (tmp_path / "out").mkdir()
    ShardStore.prepare(tmp_path / "out", rows)
    work = partial(_of_rank, encoder, rows, tmp_path / "out")
    torch.set_num_threads(1)  # threads of OpenMP's do not survive a fork
    processes = [multiprocessing.get_context("fork").Process(target=work, args=(parts,)) for parts in ([2, 0], [1])]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    found = content(tmp_path / "out")
    assert {name: found.get(name) for name in whole} == whole


def test_a_shard_that_another_process_writes_anew_stays(extract, encoder, rows, tmp_path):
    """It is on the disk, and not in the index yet."""
    extract("out")
    store = ShardStore(FeatureSpec(encoder, ("final",)), tmp_path / "out", rows, lambda: None)
    ((number, name),) = store._query("SELECT number, name FROM shards ORDER BY number LIMIT 1")
    with store._transaction() as connection:  # as that process did before
        connection.execute("DELETE FROM recordings WHERE shard = ?", (number,))
        connection.execute("DELETE FROM shards WHERE number = ?", (number,))
    assert not store._is_whole(number, tmp_path / "out" / name, 1, 1)
    assert (tmp_path / "out" / name).exists()


def _of_rank(encoder, rows, output, parts):
    parts = sorted(parts)
    mine = [row for part in parts for row in rows[4 * part : 4 * part + 4]]
    product = FeatureSpec(encoder, ("final",))
    store = ShardStore(product, output, mine, lambda: None, parts)
    made = process_rows(
        mine,
        encoder,
        partial(compute_features, encoder, product),
        store.write,
        max_duration=60,
        budget=150,
        find_cached=store.find,
    )
    assert len(list(store.durable(made))) == len(mine)


def test_one_index_takes_what_processes_write_at_once(tmp_path):
    ShardIndex(tmp_path).close()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    index = ShardIndex(tmp_path)
    assert index.query("SELECT COUNT(*) FROM shards") == [(4 * 25,)]
    assert index.query("SELECT COUNT(*) FROM recordings") == [(4 * 25 * 10,)]


def _add_many(folder: Path, process: int) -> None:
    index = ShardIndex(folder)
    for number in range(25):
        entries = tuple(shard_index.IndexEntry(f"{process} {number} {n}", "{}", "{}") for n in range(10))
        number += 100 * process
        index.add(number, shard_index.Shard(str(number), 0, 0, entries), range(100 * number, 100 * number + 10))
