"""Transcription and evaluation resume: what is complete is kept, and the files are those of an uninterrupted run."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import SPEECH, TINY
from started import Started

from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.remote_files import RemoteFile
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.run_error import RunError
from w2v_attn.runs import result_log
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.locks import LOCK, acquire_lock
from w2v_attn.runs.record import RUN
from w2v_attn.runs.row_reader import is_location_of
from w2v_attn.training.evaluation import METRICS, evaluate_corpus, task_of
from w2v_attn.training.model_folder import PREDICTIONS
from w2v_attn.training.options import CtcOptions
from w2v_attn.transcription.load_recognizer import load_recognizer
from w2v_attn.transcription.transcription_run import TRANSCRIPTS, transcribe_corpus

FORMATS = ["txt", "srt", "TextGrid"]
COUNT = 5


@pytest.fixture(scope="module")
def recognizer():
    return load_recognizer(TINY)


@pytest.fixture
def computed(recognizer, monkeypatch):
    """The lengths of the waveforms that go through the model."""
    lengths = []
    inner = recognizer.log_probabilities
    monkeypatch.setattr(recognizer, "log_probabilities", lambda wave: lengths.append(len(wave)) or inner(wave))
    return lengths


@pytest.fixture
def rows(tmp_path):
    """Copies of bundled clips that a test may change, and a file that is none; texts for evaluation."""
    listed = list_recordings(SPEECH / "clips.csv").rows[:COUNT]
    folder = tmp_path / "audio"
    found = []
    for row in listed:
        path = folder / row.id
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, path)
        found.append(Row(row.id, path, text=row.text))
    bad = folder / "bad.wav"
    bad.write_text("no audio")
    return [*found[:2], Row("bad.wav", bad, text="nothing"), *found[2:]]


def transcribe(recognizer, rows, output, *, formats=FORMATS, **options):
    return list(transcribe_corpus(recognizer, rows, output, formats=formats, max_duration=60, **options))


def evaluate(recognizer, rows, output, **options):
    task = task_of(recognizer, rows, CtcOptions())
    return list(evaluate_corpus(recognizer, rows, task, output, max_duration=60, **options))


def content(folder):
    """Bytes of all files by name, but for run.json, which states times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RUN)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def lines(folder, name=TRANSCRIPTS):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def after(count):
    """An `interrupted` that ends a run after this many recordings."""
    asked = iter(range(1000))
    return lambda: next(asked) >= count


RUNS = {"transcribe": (transcribe, TRANSCRIPTS), "evaluate": (evaluate, PREDICTIONS)}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param][0]


def test_a_second_run_computes_nothing_and_changes_nothing(run, recognizer, rows, computed, tmp_path):
    first = run(recognizer, rows, tmp_path / "out")
    assert len(computed) == COUNT
    before = content(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/**/*.srt")}
    second = run(recognizer, rows, tmp_path / "out")
    assert len(computed) == COUNT
    assert content(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert [outcome.result for outcome in second] == [outcome.result for outcome in first]
    assert [outcome.cached for outcome in second] == [outcome.reason is None for outcome in second]
    assert [outcome.seconds for outcome in second] == [outcome.seconds for outcome in first]


@pytest.mark.parametrize("end", ["asked to", "a second signal", "disk full"])
def test_an_interrupted_run_resumes_and_ends_with_the_files_of_one_that_was_not(
    run, recognizer, rows, computed, tmp_path, monkeypatch, end
):
    run(recognizer, rows, tmp_path / "once")
    computed.clear()
    if end == "asked to":
        assert len(run(recognizer, rows, tmp_path / "out", interrupted=lambda: len(computed) >= 2)) < len(rows)
    else:
        error, matches = (KeyboardInterrupt, None) if end == "a second signal" else (RunError, "No space left")
        if end == "a second signal":
            inner = recognizer.log_probabilities
            monkeypatch.setattr(recognizer, "log_probabilities", lambda w: interrupt() if computed[1:] else inner(w))
        else:
            monkeypatch.setattr(result_log, "_write_all", full_after(2))
        with pytest.raises(error, match=matches):
            run(recognizer, rows, tmp_path / "out")
        monkeypatch.undo()
    done = len(computed)
    assert json.loads((tmp_path / "out" / RUN).read_text())["status"] in ("interrupted", "stopped")
    counted = [outcome.cached for outcome in run(recognizer, rows, tmp_path / "out")]
    assert done >= 2
    assert sum(counted) >= 1  # the last one may not have been written
    assert content(tmp_path / "out") == content(tmp_path / "once")
    assert json.loads((tmp_path / "out" / RUN).read_text())["status"] == "done"


def interrupt():
    raise KeyboardInterrupt


def full_after(count):
    write, calls = result_log._write_all, []

    def step(file, line):
        calls.append(line)
        if len(calls) > count:
            write(file, line[: len(line) // 2])
            raise OSError(28, "No space left on device")
        write(file, line)

    return step


@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize("damage", ["a torn last line", "a damaged line", "both"])
def test_damaged_lines_are_computed_again(recognizer, rows, computed, tmp_path, command, damage):
    run, name = RUNS[command]
    run(recognizer, rows, tmp_path / "once")
    shutil.copytree(tmp_path / "once", tmp_path / "out")
    found = (tmp_path / "out" / name).read_bytes().splitlines(keepends=True)
    # As a kill leaves it: the lines are in the journal.
    if damage != "a damaged line":
        found[-1] = found[-1][: len(found[-1]) // 2]
    if damage != "a torn last line":
        found[1] = b"\0" * (len(found[1]) - 1) + b"\n"
    (tmp_path / "out" / f".{name}.unfinished").write_bytes(b"".join(found))
    (tmp_path / "out" / name).unlink()
    computed.clear()
    run(recognizer, rows, tmp_path / "out")
    assert len(computed) == (2 if damage == "both" else 1)
    assert content(tmp_path / "out") == content(tmp_path / "once")


def test_only_a_recording_that_was_changed_is_computed_again(run, recognizer, rows, computed, tmp_path):
    run(recognizer, rows, tmp_path / "out")
    computed.clear()
    soundfile.write(rows[0].path, torch.randn(8000).numpy() / 10, 16_000, format="FLAC")
    outcomes = run(recognizer, rows, tmp_path / "out")
    assert computed == [8000]
    run(recognizer, rows, tmp_path / "new")
    assert content(tmp_path / "out") == content(tmp_path / "new")
    assert {outcome.row.id for outcome in outcomes if not outcome.cached} == {rows[0].id, "bad.wav"}


def test_a_recording_that_failed_is_tried_again(run, recognizer, rows, computed, tmp_path):
    run(recognizer, rows, tmp_path / "out")
    assert json.loads((tmp_path / "out" / FAILURE_LOG).read_text())["id"] == "bad.wav"
    shutil.copyfile(rows[0].path, rows[2].path)
    computed.clear()
    outcomes = run(recognizer, rows, tmp_path / "out")
    assert len(computed) == 1
    assert all(outcome.reason is None for outcome in outcomes)
    assert not (tmp_path / "out" / FAILURE_LOG).exists()


def test_transcripts_are_in_the_order_of_the_rows_whichever_run_made_them(recognizer, rows, tmp_path):
    usable = [row for row in rows if row.id != "bad.wav"]
    transcribe(recognizer, usable[3:], tmp_path / "out")
    transcribe(recognizer, usable[:1], tmp_path / "out")
    # Those of an earlier list stay, behind the others.
    assert [line["id"] for line in lines(tmp_path / "out")] == [row.id for row in (usable[0], *usable[3:])]
    transcribe(recognizer, usable, tmp_path / "out")
    assert [line["id"] for line in lines(tmp_path / "out")] == [row.id for row in usable]


def test_files_that_are_missing_damaged_or_of_a_new_format_are_written_without_the_model(
    recognizer, rows, computed, tmp_path
):
    transcribe(recognizer, rows, tmp_path / "once", formats=[*FORMATS, "vtt", "eaf"])
    transcribe(recognizer, rows, tmp_path / "out")
    computed.clear()
    (tmp_path / "out" / f"{rows[0].id}.txt").unlink()
    (tmp_path / "out" / f"{rows[1].id}.srt").write_text("1\n")
    transcribe(recognizer, rows, tmp_path / "out", formats=[*FORMATS, "vtt", "eaf"])
    assert computed == []
    assert content(tmp_path / "out") == content(tmp_path / "once")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"dtype": "float64"}, "dtype: was float32, now float64"),
        ({"long_form": LongForm(kind="sliding_window")}, "long_form: was full, now sliding_window of 30 s"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_and_left_as_it_was(
    run, recognizer, rows, tmp_path, options, difference
):
    run(recognizer, rows, tmp_path / "out")
    before, record = content(tmp_path / "out"), (tmp_path / "out" / RUN).read_bytes()
    with pytest.raises(ValueError, match="of another configuration") as refused:
        run(load_recognizer(TINY, **options), rows, tmp_path / "out")
    assert difference in str(refused.value)
    assert "name another output" in str(refused.value)
    assert content(tmp_path / "out") == before
    assert (tmp_path / "out" / RUN).read_bytes() == record


def test_another_vocabulary_is_another_configuration(recognizer, rows, tmp_path):
    other = shutil.copytree(TINY, tmp_path / "other")
    symbols = json.loads((other / "vocab.json").read_text())
    symbols["a"], symbols["b"] = symbols["b"], symbols["a"]
    (other / "vocab.json").write_text(json.dumps(symbols))
    (other / "tokenizer.json").unlink(missing_ok=True)
    transcribe(recognizer, rows, tmp_path / "out")
    with pytest.raises(ValueError, match="vocabulary: was"):
        transcribe(load_recognizer(other), rows, tmp_path / "out")


def test_transcripts_of_an_unknown_configuration_are_not_kept(recognizer, rows, computed, tmp_path):
    """Without run.json each line still states its configuration."""
    transcribe(load_recognizer(TINY, dtype="float64"), rows, tmp_path / "out")
    transcribe(recognizer, rows, tmp_path / "once")
    (tmp_path / "out" / RUN).unlink()
    computed.clear()
    transcribe(recognizer, rows, tmp_path / "out")
    assert len(computed) == COUNT
    assert content(tmp_path / "out") == content(tmp_path / "once")
    (tmp_path / "out" / RUN).unlink()
    transcribe(recognizer, rows, tmp_path / "out")
    assert len(computed) == COUNT


def test_two_files_of_one_id_are_refused(run, recognizer, rows, tmp_path):
    run(recognizer, rows, tmp_path / "out")
    other = tmp_path / "elsewhere" / rows[0].id
    other.parent.mkdir(parents=True)
    shutil.copyfile(rows[3].path, other)
    with pytest.raises(ValueError, match="has the same id: name another output"):
        run(recognizer, [Row(rows[0].id, other, text="one")], tmp_path / "out")


def test_a_changed_file_under_another_spelling_of_its_path_is_computed_again(
    run, recognizer, rows, computed, tmp_path, monkeypatch
):
    run(recognizer, rows[:1], tmp_path / "out")
    shutil.copyfile(rows[3].path, rows[0].path)
    computed.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("audio")
    for folder in ("audio", "link", "link/../audio"):
        os.utime(rows[0].path, (len(folder), len(folder)))
        again = Row(rows[0].id, Path(folder, rows[0].id), text=rows[0].text)
        assert run(recognizer, [again], Path("out"))[0].reason is None
    assert len(computed) == 3


def test_the_url_of_a_recording_is_compared_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_url = Row("a.wav", Path("host/a.wav"), content=RemoteFile("https://host/a.wav"))
    assert is_location_of(of_url, "https://host/a.wav")
    assert not is_location_of(of_url, "https:/host/a.wav")
    assert not is_location_of(of_url, str(tmp_path / "host/a.wav"))
    assert not is_location_of(Row("a.wav", Path("host/a.wav")), "https://host/a.wav")


def test_a_second_run_at_the_same_time_is_refused(run, recognizer, rows, tmp_path):
    (tmp_path / "out").mkdir()
    lock = acquire_lock(tmp_path / "out" / LOCK)
    try:
        with pytest.raises(ValueError, match="in use by another run"):
            run(recognizer, rows, tmp_path / "out")
    finally:
        lock.release()


def test_a_file_that_cannot_be_read_now_keeps_its_transcript(recognizer, rows, tmp_path):
    transcribe(recognizer, rows, tmp_path / "out")
    before = lines(tmp_path / "out")
    rows[0].path.rename(tmp_path / "moved")
    outcomes = transcribe(recognizer, rows, tmp_path / "out")
    assert outcomes[0].reason is not None
    assert lines(tmp_path / "out") == before


def test_a_name_that_is_not_unicode_is_kept_too(recognizer, rows, computed, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.flac")
    shutil.copyfile(rows[0].path, path)
    row = Row(path.name, path)
    transcribe(recognizer, [row], tmp_path / "out", formats=["txt", "eaf"])
    computed.clear()
    transcribe(recognizer, [row], tmp_path / "out", formats=["txt", "eaf"])
    assert computed == []
    assert lines(tmp_path / "out")[0]["id"] == path.name


def test_evaluation_computes_a_recording_again_whose_text_was_changed(recognizer, rows, computed, tmp_path):
    evaluate(recognizer, rows, tmp_path / "out")
    computed.clear()
    changed = [Row(rows[0].id, rows[0].path, text="another text"), *rows[1:]]
    evaluate(recognizer, changed, tmp_path / "out")
    assert len(computed) == 1
    evaluate(recognizer, changed, tmp_path / "new")
    assert content(tmp_path / "out") == content(tmp_path / "new")


def test_an_evaluation_of_another_list_keeps_the_predictions_of_the_first_for_another_run(
    recognizer, rows, computed, tmp_path
):
    usable = [row for row in rows if row.id != "bad.wav"]
    lists = {"first": usable[:2], "second": usable[2:], "both": usable}
    for name, listed in lists.items():
        evaluate(recognizer, listed, tmp_path / name)
        computed.clear()
        evaluate(recognizer, listed, tmp_path / "out")
        assert len(computed) == (0 if name == "both" else len(listed))
        for file in (PREDICTIONS, METRICS):
            assert (tmp_path / "out" / file).read_bytes() == (tmp_path / name / file).read_bytes()
    computed.clear()
    evaluate(recognizer, lists["first"], tmp_path / "out")
    evaluate(recognizer, lists["second"], tmp_path / "out", interrupted=after(1))
    evaluate(recognizer, lists["second"], tmp_path / "out")
    assert computed == []
    assert content(tmp_path / "out").keys() - content(tmp_path / "second").keys() == {f".{PREDICTIONS}.unfinished"}
    evaluate(recognizer, usable, tmp_path / "out")
    assert computed == []
    assert content(tmp_path / "out") == content(tmp_path / "both")


def test_evaluation_writes_no_metrics_before_its_end(recognizer, rows, tmp_path):
    evaluate(recognizer, rows, tmp_path / "out", interrupted=after(3))
    assert not (tmp_path / "out" / METRICS).exists()
    assert not (tmp_path / "out" / PREDICTIONS).exists()


@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
def test_the_command_that_an_interrupted_one_advises_resumes_it(call, tmp_path, command):
    audio = f"audio={SPEECH / 'clips.csv'}"
    arguments = [command, audio, f"output={tmp_path / 'out'}", "device=cpu"]
    journal = tmp_path / "out" / f".{RUNS[command][1]}.unfinished"
    run = Started(arguments, tmp_path / "said")
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    run.send(signal.SIGTERM)
    code = run.end()
    assert code in (0, 143), run.said()  # 0: it was faster
    if code:
        assert "Resume with" in run.said()
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "already there" in out
    code, _, err = call(*arguments, "dtype=float64")
    assert code == 2
    assert "dtype: was float32, now float64" in err
