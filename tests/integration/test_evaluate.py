"""The commands `evaluate` and `finetune` from the command line."""

import json
import signal
import time

import pytest
from conftest import ROOT, SPEECH
from started import Started

CLIPS = SPEECH / "clips.csv"


def test_evaluate_needs_no_arguments_and_shows_what_is_wrong(call, tmp_path):
    import jiwer

    code, out, _ = call("evaluate")
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert len(rows) == 36
    wer = jiwer.wer([row["reference"] for row in rows], [row["hypothesis"] for row in rows])
    assert metrics["wer"] == pytest.approx(wer)
    assert metrics["wer"] < 0.15
    assert f"{metrics['wer']:.4f}" in out
    assert rows[0]["error"] >= rows[-1]["error"]
    assert {path.name for path in (tmp_path / "evaluation").iterdir()} == {
        "predictions.jsonl", "metrics.json", "alignments.txt", "speakers.csv", "run.json",
    }  # fmt: skip


def test_evaluate_names_what_it_could_not_use(call, tmp_path):
    clip = (SPEECH / "en-us+m5" / "00-three.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(clip)
    (tmp_path / "b.wav").write_text("no audio")
    (tmp_path / "l.csv").write_text("path,text,split\na.flac,Three!,test\nb.wav,two,test\na.flac,one,train\n".replace(
        "a.flac,one,train\n", ""
    ))  # fmt: skip
    code, out, _ = call("evaluate", f"audio={tmp_path / 'l.csv'}", "split=test")
    assert code == 1
    assert "1 of 2" in out
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["wer"] == 0
    assert call("evaluate", f"audio={tmp_path / 'l.csv'}", "split=valid")[0] == 2


def test_evaluate_on_recordings_without_text_is_a_wrong_request(call, tmp_path):
    code, _, err = call("evaluate", f"audio={SPEECH}")
    assert code == 2
    assert "no recording has a text" in err
    assert not (tmp_path / "evaluation").exists()


WRONG = {
    "no data": (["data=local"], "data.train"),
    "no such data": (["data=local", "data.train=absent"], "no file or folder"),
    "a word for a number": (["training.max_steps=many"], "training.max_steps"),
    "an unknown key": (["training.epochs=3"], "training.epochs"),
    "an unknown task": (["task=regression"], "regression"),
    "a share that is none": (["data=local", f"data.train={CLIPS}", "data.valid_share=2"], "shares of all"),
    "a pattern without a match": (["data=local", f"data.train={CLIPS}", "data.pattern='(?P<text>qq)'"], "not found"),
    "labels that are not there": (["task=classification", "data=local", f"data.train={CLIPS}"], "at least two labels"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_to_finetune_gives_code_2_and_leaves_nothing(call, tmp_path, case):
    overrides, says = WRONG[case]
    code, _, err = call("finetune", *overrides)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_finetune_reports_before_and_after(call, tmp_path):
    code, out, err = call(
        "finetune", "data=local", f"data.train={CLIPS}", "training.max_steps=4", "training.eval_steps=2",
        "training.batch_seconds=6", "output=mine", "'optimizer.factors=[{pattern: lm_head, lr: 2}]'".strip("'"),
    )  # fmt: skip
    assert code == 0, err
    assert out.index("Before training") < out.index("On valid") < out.index("Fine-tuned")
    assert "step 2: wer" in err
    assert "lr: 2" in (tmp_path / "mine" / "recipe.yaml").read_text()
    code, _, err = call("finetune", "data=local", f"data.train={CLIPS}", "output=mine")
    assert code == 2
    assert "contains a finished run" in err


@pytest.mark.slow
def test_a_signal_saves_a_checkpoint_and_the_same_command_resumes(call, tmp_path):
    command = [
        "finetune", "data=local", f"data.train={CLIPS}", f"output={tmp_path / 'out'}",
        "training.max_steps=40", "training.eval_steps=10", "training.batch_seconds=6",
    ]  # fmt: skip
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = checkpoints(tmp_path)
        run = Started(command, tmp_path / f"said {code}", folder=ROOT)
        deadline = time.monotonic() + 100
        while checkpoints(tmp_path) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send(sent)
        assert run.end() == code, run.said()
        assert "the same command resumes" in run.said()
        assert ("resumes after step" in run.said()) == bool(before)
    code, _, err = call(*command)
    assert code == 0, err
    assert "resumes after step" in err


def checkpoints(folder):
    return {path.name for path in (folder / "out" / "checkpoints").glob("checkpoint-*")}
