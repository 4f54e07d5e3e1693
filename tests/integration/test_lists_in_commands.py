"""Lists as people have them, through every command that lists recordings."""

import json
import shutil

import pytest
from conftest import SPEECH

from w2v_attn import open_features

CLIPS = sorted(SPEECH.rglob("*.flac"))[:4]
WORDS = ["three", "one", "two", "down"]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def copied(folder, *names):
    for name, clip in zip(names, CLIPS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    return folder


def nemo_segments(folder):
    copied(folder, "audio/long.flac")
    parts = [(0.0, 0.2), (0.1, 0.2), (0.2, 0.2)]
    rows = [{"audio_filepath": "audio/long.flac", "offset": o, "duration": d, "text": "one"} for o, d in parts]
    (folder / "manifest.json").write_text("\n".join(map(json.dumps, rows)))
    return folder / "manifest.json", [f"audio/long.flac@{o:.3f}-{o + d:.3f}" for o, d in parts]


def ljspeech(folder):
    copied(folder, "wavs/L0.flac", "wavs/L1.flac", "wavs/L2.flac")
    (folder / "metadata.csv").write_text("".join(f"L{n}|{n}|{word}\n" for n, word in enumerate(WORDS[:3])))
    return folder, [f"wavs/L{n}.flac" for n in range(3)]


def audio_folder(folder):
    copied(folder, *(f"data/train/c{n}.flac" for n in range(3)))
    rows = [{"file_name": f"data/train/c{n}.flac", "transcript": word} for n, word in enumerate(WORDS[:3])]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder, [f"data/train/c{n}.flac" for n in range(3)]


def semicolons(folder):
    copied(folder, *(f"clips/c{n}.flac" for n in range(3)))
    text = "".join(f"clips\\c{n}.flac;{word}\r\n" for n, word in enumerate(WORDS[:3]))
    (folder / "list.csv").write_text(f"path;text\r\n{text}", newline="")
    return folder / "list.csv", [f"clips/c{n}.flac" for n in range(3)]


def absolute(folder):
    copied(folder / "audio", *(f"{n}/c.flac" for n in range(3)))
    text = "".join(f"{folder}/audio/{n}/c.flac,{word}\n" for n, word in enumerate(WORDS[:3]))
    (folder / "lists").mkdir()
    (folder / "lists" / "list.csv").write_text(f"path,text\n{text}")
    return folder / "lists" / "list.csv", [f"{n}/c.flac" for n in range(3)]


def kaldi(folder):
    copied(folder, *(f"{n}.flac" for n in range(3)))
    (folder / "wav.scp").write_text("".join(f"u{n} flac -c -d -s {n}.flac |\n" for n in range(3)))
    (folder / "text").write_text("".join(f"u{n} {word}\n" for n, word in enumerate(WORDS[:3])))
    return folder, ["u0", "u1", "u2"]


FORMS = [nemo_segments, ljspeech, audio_folder, semicolons, absolute, kaldi]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_of_list_is_extracted_transcribed_and_evaluated(form, call, tmp_path):
    audio, ids = form(tmp_path / "in")
    assert call("extract", f"audio={audio}", "output=features")[0] == 0
    assert sorted(open_features(tmp_path / "features")) == sorted(ids)
    assert call("transcribe", f"audio={audio}", "output=transcripts")[0] == 0
    assert [line["id"] for line in lines(tmp_path / "transcripts" / "transcripts.jsonl")] == ids
    assert call("evaluate", f"audio={audio}", "output=evaluation")[0] == 0
    references = {line["id"]: line["reference"] for line in lines(tmp_path / "evaluation" / "predictions.jsonl")}
    assert references == dict(zip(ids, ["one"] * 3 if form is nemo_segments else WORDS[:3], strict=True))


@pytest.mark.parametrize(
    "form",
    [nemo_segments, *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS if form is not nemo_segments)],
    ids=lambda form: form.__name__,
)
def test_every_form_of_list_is_trained_on(form, call, tmp_path):
    audio, _ = form(tmp_path / "in")
    code, out, err = call(
        "finetune", "data=local", f"data.train={audio}", "data.valid_share=0.4", "training.max_steps=1",
        "training.eval_steps=1", "output=finetuned",
    )  # fmt: skip
    assert code == 0, out + err
    assert lines(tmp_path / "finetuned" / "dropped.jsonl") == []


BAD = {
    4: ("", "two", "line 4: the path is ''"),
    5: ("absent.flac", "two", "cannot be read: No such file or directory"),
    6: ("a.flac", "two,extra", "line 6: expected 2 columns (file, words), found 3"),
    8: ("ftp+x://host/a.flac", "two", "unknown scheme ftp+x://"),
}
EMPTY_TEXT = 9


@pytest.fixture
def broken_list(tmp_path):
    """A list with other names of its columns, absolute and relative paths, and rows that cannot be used."""
    copied(tmp_path / "in", "a.flac", "b.flac", "c.flac", "d.flac")
    good = {
        2: f"{tmp_path}/in/a.flac,three",
        3: "../in/b.flac,one",
        7: "../in/c.flac,two",
        EMPTY_TEXT: "../in/d.flac, ",
    }
    rows = good | {line: f"{path},{text}" for line, (path, text, _) in BAD.items()}
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "list.csv"
    path.write_text("file,words\n" + "\n".join(rows[line] for line in sorted(rows)) + "\n")
    return path


@pytest.mark.parametrize("command", ["extract", "transcribe", "evaluate"])
def test_bad_rows_are_named_with_their_lines_and_cost_only_themselves(command, broken_list, call, tmp_path):
    code, _, _ = call(command, f"audio={broken_list}", "columns={path: file, text: words}", "output=out")
    assert code == 1
    failures = {line["line"]: line["reason"] for line in lines(tmp_path / "out" / "failures.jsonl")}
    assert failures.keys() == BAD.keys() | ({EMPTY_TEXT} if command == "evaluate" else set())
    for line, (_, _, reason) in BAD.items():
        assert reason in failures[line]


def test_bad_rows_are_dropped_from_training_with_their_lines(broken_list, call, tmp_path):
    code, out, err = call(
        "finetune", "data=local", f"data.train={broken_list}", "data.columns={path: file, text: words}",
        "data.valid_share=0.3", "training.max_steps=1", "training.eval_steps=1", "output=out",
    )  # fmt: skip
    assert code == 0, out + err
    dropped = {line["line"]: line["reason"] for line in lines(tmp_path / "out" / "dropped.jsonl")}
    assert dropped.keys() == BAD.keys() | {EMPTY_TEXT}
    assert dropped[EMPTY_TEXT] == "has an empty text"
    for line, (_, _, reason) in BAD.items():
        assert reason in dropped[line]


def test_a_bad_row_may_be_of_the_split_that_is_asked_for(call, tmp_path):
    copied(tmp_path, "a.flac", "b.flac")
    (tmp_path / "l.jsonl").write_text('{"path": "a.flac", "text": "three", "split": "test"}\n{\n')
    code, _, _ = call("evaluate", f"audio={tmp_path / 'l.jsonl'}", "split=test", "output=out")
    assert code == 1
    assert [line["line"] for line in lines(tmp_path / "out" / "failures.jsonl")] == [2]


@pytest.mark.parametrize(
    ("command", "key", "hint"),
    [
        ("transcribe", "audio", "'columns={path: 1, text: 2}'"),
        ("finetune", "data.train", "'data.columns={path: 1, text: 2}'"),
    ],
)
def test_a_list_that_is_not_understood_is_refused_with_the_key_of_the_command(command, key, hint, call, tmp_path):
    copied(tmp_path, "a.flac")
    (tmp_path / "l.csv").write_text("a.flac,three\n")
    group = ["data=local"] if command == "finetune" else []
    code, _, err = call(command, *group, f"{key}={tmp_path / 'l.csv'}", "output=out")
    assert code == 2
    assert hint in err
    assert not (tmp_path / "out").exists()


def test_verify_reads_columns_that_are_named(call, tmp_path):
    copied(tmp_path, "a.flac")
    (tmp_path / "l.csv").write_text("where,what\na.flac,three\n")
    code, out, err = call(
        "verify", f"audio={tmp_path / 'l.csv'}", "columns={path: where}", "recordings=1", "seconds=0.2",
        "dtypes=[float32]", "show=summary",
    )  # fmt: skip
    assert code == 0, out + err
