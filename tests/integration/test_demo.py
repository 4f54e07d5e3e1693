"""The demo checkpoint is not mistaken for a real one."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from conftest import TINY, save, tiny_model

from w2v_attn import folders, load_encoder
from w2v_attn.checkpoints.demo_checkpoint import DEMO_FIELD

SPEECH = folders.find("data") / "speech"
LINE = "is the demo checkpoint, trained on synthetic speech alone"


@pytest.fixture
def own(tmp_path):
    """A recording of somebody's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(next(SPEECH.rglob("*.flac")), folder / "a.flac")
    (folder / "list.csv").write_text("path,text\na.flac,one two\n")
    return folder


@pytest.mark.parametrize("command", ["extract", "transcribe", "evaluate"])
def test_commands_say_in_one_line_that_the_demo_checkpoint_means_nothing_on_other_recordings(command, own, call):
    code, _, err = call(command, f"audio={own / 'list.csv'}", "output=out")
    assert code == 0
    assert err.count(LINE) == 1
    assert "model=base" in err


def test_verify_says_so_too(own, call):
    _, _, err = call("verify", f"audio={own}", "recordings=1", "show=summary")
    assert err.count(LINE) == 1


def test_fine_tuning_says_so_before_it_begins(own, call):
    code, _, err = call("finetune", "data=local", f"data.train={own / 'list.csv'}", "output=out", "task=ctc")
    assert code != 0  # one recording is not enough
    assert err.count(LINE) == 1


def test_nothing_is_said_on_bundled_recordings(call):
    first = sorted(SPEECH.rglob("*.flac"))[0].parent
    for command in ("extract", "transcribe"):
        code, _, err = call(command, f"audio={first}", f"output={command}")
        assert code == 0
        assert LINE not in err


def test_nothing_is_said_of_other_checkpoints(own, call, tmp_path):
    folder = save(tiny_model("wav2vec2-layer"), tmp_path / "model")
    code, _, err = call("extract", "model=local", f"model.checkpoint={folder}", f"audio={own}", "output=out")
    assert code == 0
    assert LINE not in err


def test_a_folder_that_was_saved_from_the_demo_checkpoint_is_still_one(tmp_path):
    from transformers import Wav2Vec2ForCTC

    Wav2Vec2ForCTC.from_pretrained(TINY).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())[DEMO_FIELD] is True


def test_load_encoder_logs_it(caplog, tmp_path):
    with caplog.at_level(logging.WARNING, "w2v_attn"):
        load_encoder(save(tiny_model("wav2vec2-layer"), tmp_path / "model"))
        assert not caplog.records
        load_encoder(TINY)
    assert [LINE in record.getMessage() for record in caplog.records] == [True]
    assert Path(str(TINY)).name in caplog.text
