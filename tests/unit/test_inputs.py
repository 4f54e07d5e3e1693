"""Every form of `audio=` on the real command, with unusual names and folders."""

import json
import os
import shutil
import socket

import pytest
import soundfile
import torch
from conftest import SPEECH, TINY, save, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file

from w2v_attn import load_encoder
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.extraction import extracting

CLIP = max(SPEECH.rglob("*.flac"), key=lambda path: path.stat().st_size)
NEMO = {"audio_filepath": "x/a.flac", "duration": 9.9, "text": "as in the whole file"}


def copy(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLIP, folder / name)
    return folder


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def frames(samples):
    return (samples - 400) // 320 + 1


def forms(folder):
    """Return each form of one or two recordings -> (value of audio=, ids of its recordings)."""
    x = copy(folder, "x/a.flac", "b.flac")
    yield x, ["b.flac", "x/a.flac"]
    yield x / "b.flac", ["b.flac"]
    yield (
        text(x / "l.csv", '\ufeffid, path,text\r\nq,x/a.flac,"one, ""two""\r\nthree"\r\n,./x/../b.flac,\r\n'),
        ["b.flac", "q"],
    )
    yield text(x / "l.tsv", 'path\ttext\nb.flac\t"open\n'), ["b.flac"]
    yield text(x / "l.jsonl", f"\ufeff{json.dumps({'path': 'b.flac'})}\r\n\r\n"), ["b.flac"]
    yield text(x / "l.txt", "\ufeffx/a.flac\r\nb.flac\r\n"), ["b.flac", "x/a.flac"]
    yield text(x / "l.lst", str(x / "b.flac")), ["b.flac"]
    yield text(x / "nemo.json", json.dumps(NEMO)), ["x/a.flac"]
    copy(x, "cv/clips/c.mp3")
    yield text(x / "cv" / "train.tsv", "client_id\tpath\tsentence\nme\tc.mp3\tHi\n"), ["c.mp3"]
    text(x / "train.wrd", "a\nb\n")
    yield text(x / "train.tsv", f"{x}\nx/a.flac\t1\nb.flac\t2\n"), ["b.flac", "x/a.flac"]
    chapter = copy(x / "libri", "dev/84/121/84-121-0.flac").joinpath("dev/84/121")
    text(chapter / "84-121.trans.txt", "84-121-0 A B\n")
    yield x / "libri", ["dev/84/121/84-121-0.flac"]
    commands = copy(x / "commands", "yes/a_nohash_0.wav", "_background_noise_/n.wav")
    for name in ("validation_list.txt", "testing_list.txt"):
        text(commands / name, "")
    noises = [f"_background_noise_/n.wav/{second:03d}" for second in range(int(soundfile.info(CLIP).duration))]
    yield commands, [*noises, "yes/a_nohash_0.wav"]
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"audio": [{"bytes": CLIP.read_bytes(), "path": "a.flac"}], "text": ["hi"]})
    made = made.cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": made}).save_to_disk(str(x / "set"))
    yield x / "set", ["train/0000000"]
    made.to_parquet(str(x / "hub" / "data" / "train-0.parquet"))
    yield x / "hub", ["data/train-0/0000000"]
    yield x / "hub" / "data" / "train-0.parquet", ["train-0/0000000"]


@pytest.mark.slow
def test_every_form_is_extracted(call, tmp_path):
    """All forms contain the same speech, so all give the same frames; data sets are not extracted twice."""
    whole = frames(soundfile.info(CLIP).frames)
    for number, (audio, ids) in enumerate(forms(tmp_path / "in")):
        again = [f"already there │ {len(ids)}"] if audio.name in ("set", "hub") else []
        for kept in ("", *again):
            code, out, err = call("extract", f"audio={audio}", f"output={number}", "layers=embed")
            assert code == 0, (audio, out, err)
            assert kept in out, audio
        found = {
            path.relative_to(tmp_path / str(number)).as_posix(): path
            for path in (tmp_path / str(number)).rglob("*.safe*")
        }
        assert sorted(found) == [f"{id}.safetensors" for id in ids]
        for name, path in found.items():
            with safe_open(path, "pt") as file:
                assert file.get_slice("embed").get_shape() == [frames(16_000) if "noise" in name else whole, 128], name


def test_odd_names_and_special_files_do_not_affect_other_recordings(call, tmp_path):
    names = [
        "new\nline.flac",
        "tab\t.flac",
        "back\\slash.flac",
        " a .flac",
        "-dash.flac",
        "%41.flac",
        "é😀.flac",
        "~.flac",
    ]
    audio = copy(tmp_path / "in", *names, "n" * 243 + ".flac", "A.flac", "a.flac", "dir.wav/a=(b),[c].flac")
    shutil.copy(CLIP, os.fsencode(audio) + b"/\xff\xfe.flac")
    os.mkfifo(audio / "pipe.wav")  # a pipe without a writer
    (audio / "zero.wav").symlink_to("/dev/zero")
    (audio / "gone.wav").symlink_to("nowhere")
    (audio / "linked").symlink_to("dir.wav")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(audio / "socket.wav"))
        code, out, err = call("extract", f"audio={audio}", "output=out")
    assert code == 1, err
    assert "Traceback" not in err
    failures = {line["id"]: line["reason"] for line in map(json.loads, (tmp_path / "out" / "failures.jsonl").open())}
    kinds = {"pipe.wav": "a pipe", "zero.wav": "a device", "socket.wav": "a socket", "gone.wav": "No such file"}
    assert failures.keys() == {*kinds, "n" * 243 + ".flac"}
    assert all(says in failures[name] for name, says in kinds.items())
    assert "File name too long" in failures["n" * 243 + ".flac"]
    assert {os.fsencode(path.name) for path in (tmp_path / "out").glob("*.safetensors")} == {
        *(f"{name}.safetensors".encode() for name in [*names, "A.flac", "a.flac"]),
        b"\xff\xfe.flac.safetensors",
    }
    code, out, _ = call("extract", f"audio={audio}", "output=out")
    assert f"already there │ {len(names) + 4}" in out


def test_names_that_collide_on_the_output_file_system_are_refused(call, tmp_path, monkeypatch):
    from pathlib import Path

    copy(tmp_path / "in", "x/a.flac", "X/A.flac", "b.flac")
    right = Path.exists

    def exists(path, **options):
        return right(path, **options) or any(p.name.lower() == path.name.lower() for p in path.parent.glob("*"))

    monkeypatch.setattr(Path, "exists", exists)
    code, _, err = call("extract", "audio=in", "output=out")
    assert code == 2
    assert "X/A.flac and x/a.flac would get the same file" in err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert call("extract", "audio=in", "output=out")[0] == 0


@pytest.mark.parametrize("inside", ["in", "in/features"])
def test_an_output_folder_inside_the_audio_folder_is_not_read_as_audio(call, tmp_path, inside):
    copy(tmp_path / "in", "a.flac", "b/c.flac")
    assert call("transcribe", "audio=in", f"output={inside}", "formats=[srt,txt]")[0] == 0
    for _ in range(2):
        code, out, _ = call("extract", "audio=in", f"output={inside}/extracted")
        assert code == 0
        assert "2 of 2" in out
    assert "already there │ 2" in out


@pytest.mark.parametrize(
    ("content", "written", "failed"),
    [
        ("path\na.flac\n".encode("utf-16"), ["a.flac"], []),
        (b"path;text\na.flac;x\n", ["a.flac"], []),
        (b"path\na.flac\nx/../a.flac\n", ["a.flac", "a.flac#2"], []),
        (b"path\na.flac\nabsent/../../a.flac\n", ["a.flac"], ["missing"]),
    ],
)
def test_a_manifest_as_people_have_it_is_read(call, tmp_path, content, written, failed):
    lists = tmp_path / "lists"
    lists.mkdir()
    copy(lists, "a.flac")
    (lists / "l.csv").write_bytes(content)
    code, _, _ = call("extract", "audio=lists/l.csv", "output=out")
    assert code == (1 if failed else 0)
    names = sorted(path.stem for path in (tmp_path / "out").rglob("*.safetensors"))
    assert [name.partition("/")[2] or name for name in names] == sorted(written)
    log = tmp_path / "out" / "failures.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    assert [json.loads(line)["kind"] for line in lines] == failed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,text\na.flac,grün\n".encode("latin-1"), "line 2: is not UTF-8"),
        (b"path,text,text\na.flac,x,y\n", "line 1: the column text occurs twice"),
        (b"path,offset\na.flac,-0.5\n", "line 2: offset is '-0.5', expected seconds"),
        (b"path,offset,duration\na.flac,0,nan\n", "line 2: duration is 'nan'"),
        (b"path\n", "lists no recordings"),
        (b"", "lists no recordings"),
    ],
)
def test_an_invalid_manifest_is_a_wrong_request(call, tmp_path, content, says):
    copy(tmp_path, "a.flac")
    (tmp_path / "l.csv").write_bytes(content)
    code, _, err = call("extract", "audio=l.csv", "output=out")
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_span_without_length_is_a_failure_of_its_own(call, tmp_path):
    copy(tmp_path, "a.flac")
    (tmp_path / "l.csv").write_text("id,path,offset,duration\nnone,a.flac,0.2,0\nlate,a.flac,99,1\nrest,a.flac,0.2,\n")
    code, out, _ = call("extract", "audio=l.csv", "output=out")
    assert code == 1
    assert "1 of 3" in out
    lines = map(json.loads, (tmp_path / "out" / "failures.jsonl").open())
    assert [line["id"] for line in lines] == ["none", "late"]


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def bad_checkpoint(kind, folder):
    save(tiny_model("wav2vec2-group", "ForCTC"), folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "cut short":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif kind == "keys missing":
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 4}))
    elif kind == "of another family":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "bert"}))
    else:
        weights.unlink()
        torch.save({"bomb": RunsCode()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cut short", "cut short"),
        ("keys missing", "encoder.layers.3.attention.k_proj.weight"),
        ("of another family", "Supported are: wav2vec2, hubert"),
        ("a pickle", "Nothing of it was run"),
        ("not on this machine", "model=local model.checkpoint="),
    ],
)
def test_an_invalid_checkpoint_is_a_wrong_request(call, tmp_path, monkeypatch, kind, says):
    from w2v_attn.checkpoints import hub

    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    checkpoint = "nobody/nothing" if "machine" in kind else bad_checkpoint(kind, tmp_path / "checkpoint")
    for command in ("extract", "transcribe"):
        code, _, err = call(command, f"audio={CLIP}", f"model.checkpoint={checkpoint}", "output=out")
        assert code == 2
        assert says in err
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "it-ran").exists()


def test_little_memory_does_not_change_features(tmp_path, monkeypatch):
    encoder, rows = load_encoder(TINY), list_recordings(SPEECH).rows[:5]
    right, sizes = encoder.extract, []

    def extract(waves, layers):
        sizes.append(len(waves))
        if len(waves) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(waves, layers)

    for folder in ("whole", "short"):
        outcomes = list(extracting.extract_corpus(encoder, rows, tmp_path / folder, layers=("final",), max_duration=60))
        assert not [outcome.reason for outcome in outcomes if outcome.reason]
        monkeypatch.setattr(encoder, "extract", extract)
    assert max(sizes) > 1
    for row in rows:
        whole, short = (
            load_file(tmp_path / folder / f"{row.id}.safetensors")["final"] for folder in ("whole", "short")
        )
        torch.testing.assert_close(short, whole, rtol=0, atol=1e-5)


def test_nothing_is_written_next_to_recordings(call, tmp_path):
    """So they can be on a read-only disk."""
    audio = copy(tmp_path / "in", "x/a.flac")
    before = [path.stat().st_mtime_ns for path in (audio, audio / "x")]
    for command in ("extract", "transcribe"):
        assert call(command, f"audio={audio}", f"output={command}")[0] == 0
    assert [path.stat().st_mtime_ns for path in (audio, audio / "x")] == before
