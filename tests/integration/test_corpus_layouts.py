"""Manifests of other tools, published corpora in their own layouts, and data sets become the same rows."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH

from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import CorpusError, Row
from w2v_attn.runs.row_reader import read_row

CLIP = next(iter(sorted(SPEECH.rglob("*.flac"))))


def copy(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CLIP.read_bytes())
    return folder


def fields(rows, *names):
    return [tuple(getattr(row, name) for name in names) for row in rows]


def test_columns_become_fields(tmp_path):
    (tmp_path / "l.csv").write_text(
        "path,text,label,speaker,split,offset,duration\na.wav,hi there,greeting,ann,train,1.5,2\nb.wav,,,,dev,,\n"
    )
    first, second = list_recordings(tmp_path / "l.csv").rows
    assert first == Row(
        "a.wav", tmp_path / "a.wav", 1.5, 2.0, text="hi there", label="greeting", speaker="ann", split="train"
    )
    assert second == Row("b.wav", tmp_path / "b.wav", text="", split="valid")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.wav,noon,,", r"line 2: offset is 'noon', expected seconds"),
        ("a.wav,-1,,", r"line 2: offset is '-1'"),
        ("a.wav,nan,,", r"line 2: offset is 'nan'"),
        ("a.wav,0,inf,", r"line 2: duration is 'inf'"),
        ("a.wav,0,1,rest", r"line 2: the split is 'rest', expected train, valid or test"),
    ],
)
def test_impossible_fields_are_an_error_with_their_line(line, says, tmp_path):
    (tmp_path / "l.csv").write_text(f"path,offset,duration,split\n{line}\n")
    with pytest.raises(CorpusError, match=says):
        list_recordings(tmp_path / "l.csv")


def test_nemos_manifests_are_read(tmp_path):
    lines = [
        {"audio_filepath": "a.wav", "duration": 3.2, "text": "one"},
        {"audio_filepath": "b.wav", "duration": 1.0, "offset": 2.0, "command": "two"},
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    rows = list_recordings(tmp_path / "l.jsonl").rows
    assert fields(rows, "text", "label", "offset", "duration") == [
        ("one", None, 0.0, None),
        (None, "two", 2.0, 1.0),
    ]


def test_common_voices_tables_find_their_clips(tmp_path):
    copy(tmp_path, "clips/a.mp3")
    (tmp_path / "train.tsv").write_text("client_id\tpath\tsentence\nx1\ta.mp3\tHello, “world”!\n", encoding="utf-8")
    (row,) = list_recordings(tmp_path / "train.tsv").rows
    assert (row.path, row.text, row.speaker) == (tmp_path / "clips/a.mp3", "Hello, “world”!", "x1")


@pytest.mark.parametrize(
    ("extension", "lines"), [("wrd", "hello world\nyes\n"), ("ltr", "h e l l o | w o r l d |\ny e s |\n")]
)
def test_fairseqs_manifests_find_their_texts(extension, lines, tmp_path):
    (tmp_path / "train.tsv").write_text(f"{tmp_path}/audio\nx/a.flac\t16000\nb.flac\t8000\n")
    (tmp_path / f"train.{extension}").write_text(lines)
    rows = list_recordings(tmp_path / "train.tsv").rows
    assert fields(rows, "path", "text") == [
        (tmp_path / "audio/x/a.flac", "hello world"),
        (tmp_path / "audio/b.flac", "yes"),
    ]


@pytest.mark.parametrize("lines", ["one\n", "one\ntwo\nthree\n"])
def test_fairseqs_texts_must_be_as_many_as_recordings(lines, tmp_path):
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.flac\t16000\nb.flac\t8000\n")
    (tmp_path / "train.wrd").write_text(lines)
    with pytest.raises(CorpusError, match="lines of text beside it"):
        list_recordings(tmp_path / "train.tsv")


@pytest.mark.parametrize("root", ["", "dev-clean", "LibriSpeech/dev-clean"])
def test_librispeechs_tree_gives_texts_and_speakers(root, tmp_path):
    chapter = tmp_path / root / "84" / "121123"
    copy(chapter, "84-121123-0001.flac", "84-121123-0000.flac")
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO\n84-121123-0001 BUT IN LESS\n")
    rows = list_recordings(tmp_path).rows
    assert fields(rows, "text", "speaker") == [("GO", "84"), ("BUT IN LESS", "84")]
    assert all(row.path.is_file() for row in rows)
    (chapter / "84-121123-0000.flac").unlink()
    broken, whole = list_recordings(tmp_path).rows
    assert "line 1: there is no recording 84-121123-0000" in broken.unusable_reason
    assert (whole.text, whole.unusable_reason) == ("BUT IN LESS", None)
    (chapter / "84-121123-0001.flac").unlink()
    copy(tmp_path, "other.flac")
    with pytest.raises(CorpusError, match=r"line 1: there is no recording 84-121123-0000"):
        list_recordings(tmp_path)


def test_speech_commands_become_twelve_classes(tmp_path):
    copy(tmp_path, "yes/ann_nohash_0.wav", "yes/bob_nohash_0.wav", "bed/ann_nohash_1.wav")
    (tmp_path / "_background_noise_").mkdir()
    soundfile.write(tmp_path / "_background_noise_" / "hum.wav", np.zeros(16_000 * 12), 16_000)
    (tmp_path / "validation_list.txt").write_text("yes/bob_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("\n")
    rows = list_recordings(tmp_path).rows
    words = [row for row in rows if row.label != "_silence_"]
    assert fields(words, "label", "speaker", "split") == [
        ("_unknown_", "ann", "train"),
        ("yes", "ann", "train"),
        ("yes", "bob", "valid"),
    ]
    silence = [row for row in rows if row.label == "_silence_"]
    assert [row.offset for row in silence] == list(range(12))
    assert {row.split for row in silence} == {"train", "valid", "test"}


def test_a_sub_folder_is_a_label(tmp_path):
    rows = list_recordings(copy(tmp_path, "cat/a.wav", "dog/x/b.wav", "c.wav")).rows
    assert fields(rows, "id", "label") == [("c.wav", None), ("cat/a.wav", "cat"), ("dog/x/b.wav", "x")]


def test_a_pattern_finds_fields_in_names(tmp_path):
    copy(tmp_path, "7_ann_3.wav", "0_bob_1.wav")
    rows = list_recordings(
        tmp_path, pattern=r"(?P<label>\d)_(?P<speaker>[a-z]+)_\d+", names={"0": "zero", "7": "seven"}
    ).rows
    assert fields(rows, "label", "speaker") == [("zero", "bob"), ("seven", "ann")]
    with pytest.raises(CorpusError, match="is not found in 0_bob_1"):
        list_recordings(tmp_path, pattern=r"(?P<label>x)")
    with pytest.raises(CorpusError, match="no group named"):
        list_recordings(tmp_path, pattern=r"\d")
    with pytest.raises(CorpusError, match="no regular expression"):
        list_recordings(tmp_path, pattern=r"(?P<label>")


def test_hugging_face_data_sets_are_decoded_here(tmp_path):
    datasets = pytest.importorskip("datasets")
    audio = {"bytes": CLIP.read_bytes(), "path": "clip.flac"}
    part = datasets.Dataset.from_dict({"audio": [audio, audio], "text": ["one", "two"], "label": [1, 0]})
    part = part.cast_column("audio", datasets.Audio(decode=False))
    part = part.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(str(tmp_path / "set"))
    rows = list_recordings(tmp_path / "set").rows
    assert fields(rows, "id", "text", "label", "split") == [
        ("train/0000000", "one", "yes", "train"),
        ("train/0000001", "two", "no", "train"),
        ("validation/0000000", "one", "yes", "valid"),
        ("validation/0000001", "two", "no", "valid"),
    ]
    ours = read_row(rows[0], sample_rate=16_000).waveform
    assert torch.equal(ours, read_row(Row("x", CLIP), sample_rate=16_000).waveform)


def test_a_data_set_that_cannot_be_loaded_is_an_error():
    pytest.importorskip("datasets")
    with pytest.raises(CorpusError, match="hub:nobody/nothing cannot be loaded"):
        list_recordings("hub:nobody/nothing")


@pytest.mark.parametrize("form", ["wav", "flac", "mp3"])
def test_a_part_of_a_recording_is_that_part(form, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{form}"
    soundfile.write(path, 0.1 * rng.standard_normal(16_000 * 150), 16_000)
    whole = read_row(Row("a", path), sample_rate=16_000).waveform
    part = read_row(Row("a", path, 100.25, 3.5), sample_rate=16_000).waveform
    assert torch.equal(part, whole[1_604_000 : 1_604_000 + 56_000])
    rest = read_row(Row("a", path, 149.0), sample_rate=16_000).waveform
    assert torch.equal(rest, whole[149 * 16_000 :])
    assert len(read_row(Row("a", path, 149.0, 1.05), sample_rate=16_000).waveform) == 16_000  # manifests round
    with pytest.raises(ValueError, match="ends before 152 s, where the segment from 149 s ends"):
        read_row(Row("a", path, 149.0, 3.0), sample_rate=16_000)
    with pytest.raises(ValueError, match="ends before 200 s"):
        read_row(Row("a", path, 200.0), sample_rate=16_000)


def test_quotation_marks_in_tab_separated_values_are_text(tmp_path):
    lines = ["client_id\tpath\tsentence", 'x\ta.mp3\t"Hello," she said.', 'x\tb.mp3\t"Open', 'x\tc.mp3\tend"']
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    rows = list_recordings(tmp_path / "train.tsv").rows
    assert [row.text for row in rows] == ['"Hello," she said.', '"Open', 'end"']


def test_a_split_in_a_name_may_have_any_of_its_names(tmp_path):
    copy(tmp_path, "dev/a.wav", "train/b.wav")
    rows = list_recordings(tmp_path, pattern=r"(?P<split>\w+)/").rows
    assert [row.split for row in rows] == ["valid", "train"]
    copy(tmp_path, "rest/c.wav")
    rows = list_recordings(tmp_path, pattern=r"(?P<split>\w+)/").rows
    assert [row.split for row in rows] == ["valid", None, "train"]
    assert "the split is 'rest'" in rows[1].unusable_reason
    with pytest.raises(CorpusError, match=r"rest/c\.wav: the split is 'rest'"):
        list_recordings(copy(tmp_path / "all", "rest/c.wav"), pattern=r"(?P<split>\w+)/")


def test_nemos_manifests_end_in_json_too(tmp_path):
    (tmp_path / "m.json").write_text('{"audio_filepath": "a.wav", "text": "x"}\n{"audio_filepath": "b.wav"}\n')
    assert len(list_recordings(tmp_path / "m.json").rows) == 2


def test_fairseqs_manifests_can_be_moved(tmp_path):
    (tmp_path / "train.tsv").write_text("/their/machine\nx/a.flac\t16000\n")
    (row,) = list_recordings(tmp_path / "train.tsv", root=tmp_path / "here").rows
    assert row.path == tmp_path / "here" / "x" / "a.flac"
    (tmp_path / "train.tsv").write_text("/their/machine\nx/a.flac\t16000\nx/a.flac\t16000\n")
    assert [row.id for row in list_recordings(tmp_path / "train.tsv").rows] == ["x/a.flac", "x/a.flac#2"]


def test_splits_of_data_sets_are_known_by_their_beginnings_and_nothing_is_none(tmp_path):
    datasets = pytest.importorskip("datasets")
    audio = {"bytes": CLIP.read_bytes(), "path": None}
    part = datasets.Dataset.from_dict({"audio": [audio], "text": [None]}).cast_column(
        "audio", datasets.Audio(decode=False)
    )
    names = ("train.clean.100", "test.clean", "invalidated")
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(str(tmp_path / "set"))
    corpus = list_recordings(tmp_path / "set")
    assert fields(corpus.rows, "split", "text") == [("train", None), ("test", None)]
    assert corpus.skipped == {"rows of invalidated": 1}
    assert len({row.path for row in corpus.rows}) == 2
