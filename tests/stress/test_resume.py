"""Runs that survive: whatever ends one, the same command resumes and ends with the same files to the bit."""

import errno
import json
import os
import shutil
from pathlib import Path

import killing
import pytest
import soundfile
import torch
from conftest import GROUP_NORM, SPEECH, save, tiny_model
from safetensors.torch import load_file
from started import Started

from w2v_attn import load_encoder, whole_files
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.extraction import extracting
from w2v_attn.feature_files import read_header
from w2v_attn.run_error import RunError
from w2v_attn.runs import row_reader
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.locks import LOCK
from w2v_attn.runs.record import RUN


@pytest.fixture
def encoder(group_checkpoint, monkeypatch):
    """With batches of two or three of the clips."""
    made = load_encoder(group_checkpoint)
    monkeypatch.setattr(made, "frame_budget", lambda: 150)
    return made


@pytest.fixture
def rows():
    return list_recordings(SPEECH).rows[:5]


@pytest.fixture
def extract(encoder, rows, tmp_path):
    """Runs an extraction to its end -> its outcomes in the order of the rows."""

    def run(output, *, model=encoder, rows=rows, layers=("final",), **options):
        made = extracting.extract_corpus(model, rows, tmp_path / output, layers=layers, max_duration=60, **options)
        return sorted(made, key=lambda outcome: rows.index(outcome.row))

    return run


def content(folder):
    """Bytes of all files by name, but for run.json, which speaks of time."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RUN)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def record(folder):
    return json.loads((folder / RUN).read_text())


def ledger(folder):
    path = folder / FAILURE_LOG
    return [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_files_of_one_that_was_not(tmp_path):
    run = Started(["--recordings", "100", "--kills", "4"], tmp_path / "said", main=killing.main)
    assert run.end(100) == 0, run.said()
    found = json.loads(run.said().splitlines()[-1])
    assert found["codes"] == [1, 1]  # some of the recordings are none
    assert found["files"] == 100 - 2 + 2
    assert found["sessions"] > 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "files"), [(["transcribe", "formats=[srt,TextGrid]"], 2 * 49 + 3), (["evaluate"], 5)]
)
def test_killed_at_random_moments_a_transcription_ends_with_the_files_of_one_that_was_not(command, files, tmp_path):
    name, *options = command
    arguments = ["--command", name, "--recordings", "50", "--kills", "4", *options]
    run = Started(arguments, tmp_path / "said", main=killing.main)
    assert run.end(200) == 0, run.said()
    found = json.loads(run.said().splitlines()[-1])
    assert found["codes"] == [1, 1]  # some of the recordings are none
    assert found["files"] == files
    assert found["sessions"] > 2


@pytest.mark.slow
def test_killed_while_disks_and_decoders_fail_a_run_ends_with_the_files_of_one_where_they_did_not(tmp_path):
    run = Started(["--faults", "--recordings", "360", "--kills", "5"], tmp_path / "said", main=killing.main)
    assert run.end(200) == 0, run.said()
    found = json.loads(run.said().splitlines()[-1])
    assert found["codes"] == [1, 1]
    assert found["left_behind"] == 0
    for always in ("SIGSEGV", "0.2 GB of memory"):
        assert any(always in reason for reason in found["failed"])


def test_a_second_run_computes_nothing_and_changes_nothing(extract, encoder, tmp_path, monkeypatch):
    first = extract("out")
    before = content(tmp_path / "out")
    monkeypatch.setattr(encoder, "extract", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(row_reader, "read_row", lambda *_, **__: pytest.fail("read again"))
    second = extract("out")
    assert content(tmp_path / "out") == before
    assert [outcome.result for outcome in second] == [outcome.result for outcome in first]
    assert all(outcome.cached for outcome in second)
    assert [outcome.seconds for outcome in second] == [outcome.seconds for outcome in first]


def test_whatever_is_missing_comes_back_to_the_bit(extract, encoder, rows, tmp_path):
    """For its batch is computed whole: features of the missing ones alone have other last bits."""
    extract("once")
    whole = content(tmp_path / "once")
    waves = [row_reader.read_row(row, sample_rate=16_000).waveform for row in rows]
    alone = [encoder.extract([wave])[0]["final"] for wave in waves]
    in_batch = [load_file(tmp_path / "once" / f"{row.id}.safetensors")["final"] for row in rows]
    assert not all(map(torch.equal, alone, in_batch))  # so this test can fail
    for missing in ([0], [1], [2], [3], [4], [0, 1, 4]):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "once", tmp_path / "out")
        for number in missing:
            (tmp_path / "out" / f"{rows[number].id}.safetensors").unlink()
        outcomes = extract("out")
        assert [n for n, outcome in enumerate(outcomes) if not outcome.cached] == missing
        assert content(tmp_path / "out") == whole


def test_a_batch_is_the_same_one_whatever_memory_and_threads_there_are(extract, encoder, rows, tmp_path, monkeypatch):
    extract("out")
    whole = content(tmp_path / "out")
    (tmp_path / "out" / f"{rows[1].id}.safetensors").unlink()
    monkeypatch.setattr(encoder, "frame_budget", lambda: 1)
    extract("out")
    assert content(tmp_path / "out") == whole


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_disk_that_fails_at_any_step_leaves_nothing_partial_and_the_run_resumes(extract, tmp_path, code):
    extract("once")
    whole = content(tmp_path / "once")
    ends = 0
    for step in range(1000):
        fault = _Fault(step, code)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with pytest.MonkeyPatch.context() as patched:
            for name in ("fsync", "replace"):
                patched.setattr(whole_files.os, name, fault.around(getattr(os, name)))
            patched.setattr(os, "write", fault.around(os.write))
            patched.setattr(Path, "write_bytes", fault.around(Path.write_bytes, half=True))
            try:
                extract("out")
            except (RunError, ValueError) as error:
                ends += os.strerror(code) in str(error)
        left = content(tmp_path / "out")
        assert left.items() <= whole.items(), f"step {step}"
        if step % 3 == 0:
            extract("out")
            assert content(tmp_path / "out") == whole, f"step {step}"
        if not fault.happened:
            break
    assert step > 3 * 5
    assert ends > 3 * 5


class _Fault:
    """An error of the file system at the given call, counted over all functions that it is put around."""

    def __init__(self, step, code):
        self._left, self._code, self.happened = step, code, False

    def around(self, function, *, half=False):
        """half: of its last argument is written before that."""

        def call(*arguments):
            self._left -= 1
            if self._left == -1:
                self.happened = True
                if half:
                    function(*arguments[:-1], arguments[-1][: len(arguments[-1]) // 2])
                raise OSError(self._code, os.strerror(self._code))
            return function(*arguments)

        return call


def test_a_folder_whose_disk_went_away_is_not_made_anew(extract, encoder, tmp_path, monkeypatch):
    right = encoder.extract

    def unmounted(*arguments):
        (tmp_path / "out").rename(tmp_path / "disk")
        (tmp_path / "out").mkdir()  # the mount point
        monkeypatch.setattr(encoder, "extract", right)
        return right(*arguments)

    monkeypatch.setattr(encoder, "extract", unmounted)
    with pytest.raises(RunError, match="unmounted"):
        extract("out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("damage", ["cut short", "empty", "longer", "no header", *range(0, 700, 41)])
def test_a_damaged_file_is_computed_again(extract, rows, tmp_path, damage):
    extract("out")
    whole = content(tmp_path / "out")
    path = tmp_path / "out" / f"{rows[2].id}.safetensors"
    data = bytearray(path.read_bytes())
    if isinstance(damage, int):  # a bit of the header, and of its length
        data[damage] ^= 1 << damage % 7
    path.write_bytes(
        {"cut short": data[:-1], "empty": b"", "longer": data + b"\0", "no header": b"\xff" * 900}.get(damage, data)
    )
    assert read_header(path) is None
    assert [outcome.cached for outcome in extract("out")] == [True, True, False, True, True]
    assert content(tmp_path / "out") == whole


def test_a_source_that_was_changed_is_computed_again_and_leaves_nothing_where_it_is_no_audio_now(extract, tmp_path):
    audio = tmp_path / "in"
    audio.mkdir()
    for name, clip in zip("abc", list_recordings(SPEECH).rows, strict=False):
        shutil.copy(clip.path, audio / f"{name}.flac")
    rows = list_recordings(audio).rows
    extract("out", rows=rows)
    samples, rate = soundfile.read(audio / "b.flac")
    soundfile.write(audio / "b.flac", samples / 2, rate)
    assert [outcome.cached for outcome in extract("out", rows=rows)] == [True, False, True]
    extract("once", rows=rows)
    assert content(tmp_path / "out") == content(tmp_path / "once")
    (audio / "b.flac").write_text("no audio any more")
    extract("out", rows=rows)
    assert "b.flac.safetensors" not in content(tmp_path / "out")
    assert ledger(tmp_path / "out") == ["b.flac"]


def test_a_source_that_is_out_of_reach_is_a_failure_and_its_features_stay(extract, tmp_path):
    clip = tmp_path / "a.flac"
    shutil.copy(list_recordings(SPEECH).rows[0].path, clip)
    rows = (Row("a", clip),)
    extract("out", rows=rows)
    clip.rename(tmp_path / "away.flac")
    assert "No such file" in extract("out", rows=rows)[0].reason
    assert (tmp_path / "out" / "a.safetensors").is_file()
    (tmp_path / "away.flac").rename(clip)
    assert extract("out", rows=rows)[0].cached
    assert ledger(tmp_path / "out") == []


def test_another_recording_of_the_same_name_is_refused(extract, rows, tmp_path):
    extract("out", rows=[Row("a", rows[0].path)])
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match="has the same id: name another output"):
        extract("out", rows=[Row("a", rows[1].path)])
    assert content(tmp_path / "out") == before


def test_a_changed_recording_under_another_spelling_of_its_path_is_extracted_again(
    extract, rows, tmp_path, monkeypatch
):
    shutil.copyfile(rows[0].path, tmp_path / "a.wav")
    extract("out", rows=[Row("a", tmp_path / "a.wav")])
    shutil.copyfile(rows[1].path, tmp_path / "a.wav")
    os.utime(tmp_path / "a.wav", (1, 1))
    monkeypatch.chdir(tmp_path)
    again = extract("out", rows=[Row("a", Path("a.wav"))])
    assert [(outcome.reason, outcome.cached) for outcome in again] == [(None, False)]


def test_another_configuration_is_refused_with_the_difference(extract, group_checkpoint, tmp_path):
    extract("out")
    before, run = content(tmp_path / "out"), record(tmp_path / "out")
    other = save(tiny_model("wav2vec2-group", "ForCTC", seed=1, **GROUP_NORM), tmp_path / "other")
    windows = LongForm(kind="sliding_window", seconds=2)
    cases = {
        "layers: was final, now layer_01,final": {"layers": ("layer_01", "final")},
        "checkpoint: was": {"model": load_encoder(other)},
        "dtype: was float32, now float64": {"model": load_encoder(group_checkpoint, dtype="float64")},
        "long_form: was full, now sliding_window of 2 s": {"model": load_encoder(group_checkpoint, long_form=windows)},
    }
    for difference, options in cases.items():
        with pytest.raises(ValueError, match="of another configuration") as caught:
            extract("out", **options)
        assert difference in str(caught.value)
        assert "name another output" in str(caught.value)
        assert (content(tmp_path / "out"), record(tmp_path / "out")) == (before, run)
    (tmp_path / "out" / RUN).unlink()  # the files say it themselves
    with pytest.raises(ValueError, match="of another configuration"):
        extract("out", layers=("layer_01", "final"))
    assert content(tmp_path / "out") == before
    assert all(outcome.cached for outcome in extract("out"))


def test_another_dtype_is_refused_for_that_alone(extract, group_checkpoint, tmp_path):
    extract(tmp_path)
    with pytest.raises(ValueError, match=r"dtype: was float32, now float16\nGive the same"):
        extract(tmp_path, model=load_encoder(group_checkpoint, dtype="float16"))


def test_a_checkpoint_is_its_weights_wherever_they_are(extract, group_checkpoint, tmp_path):
    extract("out")
    shutil.copytree(group_checkpoint, tmp_path / "elsewhere")
    assert all(outcome.cached for outcome in extract("out", model=load_encoder(tmp_path / "elsewhere")))


def test_other_versions_are_told(extract, tmp_path, caplog):
    extract("out")
    run = record(tmp_path / "out")
    run["made_with"]["torch"] = "1.0"
    (tmp_path / "out" / RUN).write_text(json.dumps(run))
    assert all(outcome.cached for outcome in extract("out"))
    assert "torch: was 1.0" in caplog.text


def test_two_runs_at_once_are_kept_apart_and_the_dead_keep_nobody_out(extract, encoder, rows, tmp_path):
    first = extracting.extract_corpus(encoder, rows, tmp_path / "out", layers=("final",), max_duration=60)
    next(first)
    with pytest.raises(ValueError, match=f"in use by another run \\(process {os.getpid()} on "):
        extract("out")
    first.close()
    (tmp_path / "out" / LOCK).write_text("process 1 on nowhere")  # as a kill leaves it
    assert len(extract("out")) == len(rows)
    assert not (tmp_path / "out" / LOCK).exists()


def test_what_killed_writers_left_is_removed_and_nothing_else(extract, rows, tmp_path):
    extract("out")
    run = record(tmp_path / "out")
    (tmp_path / "out" / RUN).write_text(json.dumps({**run, "status": "running"}))
    folder = (tmp_path / "out" / rows[0].id).parent
    for name in (".tmp-0123456789abcdef", ".tmp-mine", "0123456789abcdef"):
        (folder / name).write_text("x")
    extract("out")
    assert not (folder / ".tmp-0123456789abcdef").exists()
    assert (folder / ".tmp-mine").exists()
    assert (folder / "0123456789abcdef").exists()


def test_the_ledger_says_what_is_so_now(extract, encoder, tmp_path, monkeypatch):
    audio = tmp_path / "in"
    audio.mkdir()
    for number, clip in enumerate(list_recordings(SPEECH).rows[:6]):
        shutil.copy(clip.path, audio / f"{number}.flac")
    good = (audio / "0.flac").read_bytes()
    for name in ("0.flac", "3.flac", "5.flac"):
        (audio / name).write_text("no audio")
    rows = list_recordings(audio).rows
    extract("out", rows=rows)
    assert ledger(tmp_path / "out") == ["0.flac", "3.flac", "5.flac"]
    with (tmp_path / "out" / FAILURE_LOG).open("a") as file:
        file.write('{"id": "2.fl')  # a kill in the middle of a line
    (audio / "0.flac").write_bytes(good)
    right, stop = encoder.extract, []
    monkeypatch.setattr(encoder, "extract", lambda *arguments: stop.append(True) or right(*arguments))
    reached = extract("out", rows=rows, interrupted=lambda: bool(stop))
    assert 0 < len(reached) < len(rows)
    unreached = {row.id for row in rows} - {outcome.row.id for outcome in reached}
    failed = {outcome.row.id for outcome in reached if outcome.reason}
    assert set(ledger(tmp_path / "out")) == failed | (unreached & {"0.flac", "3.flac", "5.flac"})
    extract("out", rows=rows)
    assert ledger(tmp_path / "out") == ["3.flac", "5.flac"]


def test_run_json_says_how_far_a_run_is(extract, encoder, rows, tmp_path, monkeypatch):
    out = tmp_path / "out"
    seen = []
    right = encoder.extract
    monkeypatch.setattr(encoder, "extract", lambda *a: seen.append(record(out)["status"]) or right(*a))
    extract("out", interrupted=lambda: len(seen) > 0)
    assert seen[0] == "running"
    found = record(out)
    assert found["status"] == "interrupted"
    counts = found["counts"]
    assert 0 < counts["written"] < len(rows)
    assert counts["written"] + counts["not_reached"] == len(rows)
    extract("out", about={"command": "w2v-attn extract"})
    found = record(out)
    assert found["status"] == "done"
    kept = {"written": counts["not_reached"], "kept": counts["written"], "failed": 0, "not_reached": 0}
    assert found["counts"] == {"recordings": len(rows), **kept}
    assert found["sessions"] == 2
    assert found["command"] == "w2v-attn extract"
    assert found["fingerprint"]["layers"] == "final"
    assert found["made_with"]["torch"] == torch.__version__


def test_an_output_that_cannot_be_written_is_a_wrong_request(call):
    code, _, err = call("extract", f"audio={SPEECH}", "output=/proc/out")
    assert code == 2
    assert "cannot write to /proc/out" in err


def test_a_full_disk_ends_with_the_command_that_goes_on(call, tmp_path, monkeypatch):
    right = os.replace

    def full(temporary, path):
        if path.suffix == ".safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        right(temporary, path)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = call("extract", f"audio={SPEECH}", "output=out put")
    assert code == 1
    assert "No space left" in err
    assert f"w2v-attn extract audio={SPEECH} 'output=out put'" in err
    assert record(tmp_path / "out put")["status"] == "stopped"
