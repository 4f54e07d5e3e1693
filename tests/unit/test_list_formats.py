"""Every form of list that people have becomes the same rows; a row that cannot be used costs only that row."""

import codecs
import gzip
import json

import numpy as np
import pytest
import soundfile

from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import CorpusError

LHOTSE_RECORDING = {
    "id": "r1",
    "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
    "sampling_rate": 16000,
    "num_samples": 160000,
    "duration": 10.0,
    "channel_ids": [0],
}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def touch(folder, *names):
    for name in names:
        write(folder / name, "")
    return folder


def fields(rows, *names):
    return [tuple(getattr(row, name) for name in names) for row in rows]


def reasons(rows):
    return {row.line: row.unusable_reason for row in rows if row.unusable_reason is not None}


def as_lines(*objects):
    return "".join(json.dumps(one) + "\n" for one in objects)


TABLES = {
    "commas": "path,text\na.wav,Hello you\nb/c.wav,Bye\n",
    "semicolons": "path;text\na.wav;Hello you\nb/c.wav;Bye\n",
    "tabs": "path\ttext\na.wav\tHello you\nb/c.wav\tBye\n",
    "bars": "path|text\na.wav|Hello you\nb/c.wav|Bye\n",
    "Windows' lines and backslashes": "path;text\r\na.wav;Hello you\r\nb\\c.wav;Bye\r\n",
    "an old Macintosh's lines": "path,text\ra.wav,Hello you\rb/c.wav,Bye\r",
    "a byte order mark": codecs.BOM_UTF8 + b"path,text\na.wav,Hello you\nb/c.wav,Bye\n",
    "UTF-16": "path;text\r\na.wav;Hello you\r\nb/c.wav;Bye\r\n".encode("utf-16"),
    "UTF-16 without a mark": "path,text\na.wav,Hello you\nb/c.wav,Bye\n".encode("utf-16-le"),
    "quoted values": '"path","text"\n"a.wav","Hello you"\n"b/c.wav","Bye"\n',
    "Excel's first line": "sep=;\npath;text\na.wav;Hello you\nb/c.wav;Bye\n",
    "empty rows and columns": "path,text,,\na.wav,Hello you,,\n,,,\nb/c.wav,Bye,,\n\n",
    "other names": "File Name,Sentence\na.wav,Hello you\nb/c.wav,Bye\n",
    "gzip": gzip.compress(b"path,text\na.wav,Hello you\nb/c.wav,Bye\n"),
    "spaces around values": "path, text\n a.wav,Hello you\nb/c.wav ,Bye\n",
}


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.txt"])
@pytest.mark.parametrize("form", TABLES)
def test_tables_of_every_spelling_give_the_same_rows(form, name, tmp_path):
    touch(tmp_path, "a.wav", "b/c.wav")
    rows = list_recordings(write(tmp_path / name, TABLES[form])).rows
    assert fields(rows, "id", "path", "text") == [
        ("a.wav", tmp_path / "a.wav", "Hello you"),
        ("b/c.wav", tmp_path / "b/c.wav", "Bye"),
    ]


def test_a_name_with_a_backslash_that_exists_is_taken_as_it_is(tmp_path):
    touch(tmp_path, "a\\b.wav")
    (row,) = list_recordings(write(tmp_path / "l.csv", "path,text\na\\b.wav,x\n")).rows
    assert row.path.is_file()


JSON = {
    "lines": as_lines({"path": "a.wav", "text": "one"}, {"path": "b.wav", "text": "two"}),
    "an array": json.dumps([{"path": "a.wav", "text": "one"}, {"path": "b.wav", "text": "two"}]),
    "an indented array": json.dumps([{"path": "a.wav", "text": "one"}, {"path": "b.wav", "text": "two"}], indent=2),
    "a list in a dict": json.dumps({"data": [{"wav": "a.wav", "text": "one"}, {"wav": "b.wav", "text": "two"}]}),
    "a dict of columns": json.dumps({"path": ["a.wav", "b.wav"], "text": ["one", "two"]}),
    "pandas' dict of columns": json.dumps({"path": {"0": "a.wav", "1": "b.wav"}, "text": {"0": "one", "1": "two"}}),
    "Hugging Face's audio": as_lines(
        {"audio": {"path": "a.wav", "bytes": None}, "text": "one"}, {"audio": {"path": "b.wav"}, "text": "two"}
    ),
    "gzip": gzip.compress(as_lines({"path": "a.wav", "text": "one"}, {"path": "b.wav", "text": "two"}).encode()),
}


@pytest.mark.parametrize("name", ["l.json", "l.jsonl", "l.jsonl.gz"])
@pytest.mark.parametrize("form", JSON)
def test_json_of_every_shape_gives_the_same_rows(form, name, tmp_path):
    rows = list_recordings(write(tmp_path / name, JSON[form])).rows
    assert fields(rows, "id", "text") == [("a.wav", "one"), ("b.wav", "two")]


def test_an_array_of_paths_is_a_list_of_paths(tmp_path):
    rows = list_recordings(write(tmp_path / "l.json", '["a.wav", "b.wav"]')).rows
    assert fields(rows, "id") == [("a.wav",), ("b.wav",)]


def test_json_that_is_cut_short_says_where(tmp_path):
    with pytest.raises(CorpusError, match=r"line 1: begins an array or a dict that is not JSON: .* line 3"):
        list_recordings(write(tmp_path / "l.json", '[\n {"path": "a.wav"},\n {"path": "b.'))


def test_speechbrains_json_gives_ids_texts_and_parts_in_samples(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 4), 8000)
    entries = {
        "u1": {"wav": "{data_root}/long.wav", "length": 4.0, "words": "HELLO", "spk_id": "s1"},
        "u2": {"wav": {"file": "{data_root}/long.wav", "start": 8000, "stop": 16000}, "wrd": "YOU"},
        "u3": {"wav": None, "words": "GONE"},
    }
    rows = list_recordings(write(tmp_path / "train.json", json.dumps(entries))).rows
    assert fields(rows[:2], "id", "path", "offset", "duration", "text", "speaker") == [
        ("u1", tmp_path / "long.wav", 0.0, None, "HELLO", "s1"),
        ("u2", tmp_path / "long.wav", 1.0, 1.0, "YOU", None),
    ]
    assert rows[2].unusable_reason == "entry 'u3': the path is None, expected the path of a file"
    assert rows[2].id == "u3"


def test_speechbrains_csv_gives_ids_and_texts(tmp_path):
    text = "ID,duration,wav,spk_id,wrd\nu1,2.5,$data_root/a.wav,s1,HELLO\nu2,1.5,$data_root/b.wav,s2,YOU\n"
    rows = list_recordings(write(tmp_path / "train.csv", text), root=tmp_path / "data").rows
    assert fields(rows, "id", "path", "text", "speaker", "duration") == [
        ("u1", tmp_path / "data/a.wav", "HELLO", "s1", None),
        ("u2", tmp_path / "data/b.wav", "YOU", "s2", None),
    ]


@pytest.mark.parametrize("named", ["", "metadata.csv"])
def test_ljspeech_gives_normalised_texts(named, tmp_path):
    touch(tmp_path, "wavs/LJ1.wav", "wavs/LJ2.wav", "wavs/LJ3.wav")
    write(
        tmp_path / "metadata.csv", 'LJ1|In 1455, "x"|In fourteen fifty-five, "x"\nLJ2|Two|\nLJ3|Three\nLJ4|Four|Four\n'
    )
    rows = list_recordings(tmp_path / named).rows
    assert fields(rows, "id", "text", "label") == [
        ("wavs/LJ1.wav", 'In fourteen fifty-five, "x"', None),
        ("wavs/LJ2.wav", "Two", None),
        ("wavs/LJ3.wav", "Three", None),
        ("wavs/LJ4.wav", "Four", None),
    ]


def test_a_list_like_ljspeechs_may_have_two_columns_and_another_folder(tmp_path):
    touch(tmp_path, "wav/1.wav", "wav/2.wav")
    rows = list_recordings(write(tmp_path / "metadata.txt", "1|One\n\n2.wav|Two\n")).rows
    assert fields(rows, "id", "text", "line") == [("wav/1.wav", "One", 1), ("wav/2.wav", "Two", 3)]


def test_bytes_of_another_encoding_cost_their_line(tmp_path):
    touch(tmp_path, "wavs/1.wav", "wavs/2.wav")
    rows = list_recordings(write(tmp_path / "metadata.csv", b"1|It is\n2|It\x92s\n").parent).rows
    assert reasons(rows) == {2: "line 2: is not UTF-8: save the list as UTF-8"}


@pytest.mark.parametrize("delimiter", "|\t")
def test_lists_of_paths_with_texts_need_no_header(delimiter, tmp_path):
    rows = list_recordings(write(tmp_path / "train.txt", f"x/a.wav{delimiter}Hello, you\nb.wav{delimiter}Bye\n")).rows
    assert fields(rows, "id", "text") == [("x/a.wav", "Hello, you"), ("b.wav", "Bye")]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_an_audio_folder_is_read_with_its_metadata(form, tmp_path):
    touch(tmp_path, "train/a.wav", "train/b.wav", "test/c.wav", "notes.txt")
    described = [{"file_name": "a.wav", "transcript": "one"}, {"file_name": "absent.wav", "transcript": "two"}]
    path = tmp_path / "train" / f"metadata.{form}"
    if form == "parquet":
        pytest.importorskip("pandas").DataFrame(described).to_parquet(path)
    elif form == "jsonl":
        write(path, as_lines(*described))
    else:
        write(path, "file_name,transcript\na.wav,one\nabsent.wav,two\n")
    corpus = list_recordings(tmp_path)
    assert fields(corpus.rows, "id", "text") == [
        ("test/c.wav", None),
        ("train/a.wav", "one"),
        ("train/absent.wav", "two"),
        ("train/b.wav", None),
    ]
    assert corpus.skipped == {".txt": 1}


def test_metadata_that_describes_no_recordings_leaves_a_folder_as_it_was(tmp_path):
    touch(tmp_path, "cat/a.wav", "dog/b.wav")
    write(tmp_path / "metadata.csv", "name,version\npets,1\n")
    assert fields(list_recordings(tmp_path).rows, "id", "label") == [("cat/a.wav", "cat"), ("dog/b.wav", "dog")]


KALDI = {
    "wav.scp": "r1 audio/r1.wav\nr2 flac -c -d -s audio/r2.flac |\nr3 sox x.wav -t wav - | rm -rf / |\nr4 a.ark:17\n",
    "utt2spk": "r1 s1\nr2 s2\n",
    "text": "r1 HELLO YOU\nr2 BYE\nr9 LOST\n",
}


@pytest.mark.parametrize("named", ["", "wav.scp"])
def test_a_kaldi_folder_is_read_and_its_commands_are_never_run(named, tmp_path):
    data = tmp_path / "data" / "train"
    touch(tmp_path, "audio/r1.wav", "audio/r2.flac")
    for name, text in KALDI.items():
        write(data / name, text)
    rows = list_recordings(data / named).rows
    assert fields(rows[:2], "id", "path", "text", "speaker") == [
        ("r1", tmp_path / "audio/r1.wav", "HELLO YOU", "s1"),
        ("r2", tmp_path / "audio/r2.flac", "BYE", "s2"),
    ]
    assert [row.id for row in rows] == ["r1", "r2", "r3", "r4", "r9"]
    assert "is the shell command 'sox x.wav -t wav - | rm -rf /'" in rows[2].unusable_reason
    assert "never run" in rows[2].unusable_reason
    assert "Kaldi archive" in rows[3].unusable_reason
    assert "the utterance r9 of text has no recording" in rows[4].unusable_reason


@pytest.mark.parametrize(
    "command", ["touch x |", "cat a.wav b.wav |", "flac -c -d -s $(touch x) |", "cat <a.wav |", "'|"]
)
def test_what_is_not_only_a_decoder_is_not_taken_for_one(command, tmp_path):
    touch(tmp_path, "a.wav")
    rows = list_recordings(write(tmp_path / "wav.scp", f"r1 a.wav\nr2 {command}\n").parent).rows
    assert "never run" in rows[1].unusable_reason
    assert not (tmp_path / "x").exists()


def test_kaldis_segments_are_parts_of_recordings(tmp_path):
    touch(tmp_path, "r1.wav")
    write(tmp_path / "wav.scp", "r1 r1.wav\n")
    write(tmp_path / "segments", "u1 r1 0.0 1.5\nu2 r1 1.5 -1\nu3 r2 0 1\nu4 r1 3 2\nu5 r1 1\n")
    write(tmp_path / "text", "u1 HELLO\nu2 YOU\n")
    rows = list_recordings(tmp_path).rows
    assert fields(rows[:2], "id", "offset", "duration", "text") == [
        ("u1", 0.0, 1.5, "HELLO"),
        ("u2", 1.5, None, "YOU"),
    ]
    assert reasons(rows).keys() == {3, 4, 5}
    assert reasons(rows)[3] == "line 3: the recording r2 is not in wav.scp"


def cut(id, start=0.0, duration=10.0, **changes):
    words = [{"id": f"{id}-1", "recording_id": "r1", "start": 0.0, "duration": 1.0, "text": "hello", "speaker": "s1"}]
    return {
        "id": id, "start": start, "duration": duration, "channel": 0, "supervisions": words,
        "recording": LHOTSE_RECORDING, "type": "MonoCut", **changes,
    }  # fmt: skip


def test_lhotses_cuts_are_read_without_lhotse(tmp_path):
    stereo = {**LHOTSE_RECORDING, "sources": [{"type": "file", "channels": [0, 1], "source": "b.wav"}]}
    command = {**LHOTSE_RECORDING, "sources": [{"type": "command", "channels": [0], "source": "touch x"}]}
    lines = [
        cut("c1"),
        cut("c2", 2.5, 1.5),
        cut("c3", recording=stereo),
        cut("c4", recording=command),
        {"id": "c5", "type": "MixedCut", "tracks": []},
    ]
    path = write(tmp_path / "cuts.jsonl.gz", gzip.compress(as_lines(*lines).encode()))
    rows = list_recordings(path).rows
    assert fields(rows[:2], "id", "path", "offset", "duration", "text", "speaker") == [
        ("c1", tmp_path / "a.wav", 0.0, None, "hello", "s1"),
        ("c2", tmp_path / "a.wav", 2.5, 1.5, "hello", "s1"),
    ]
    assert (rows[2].path, rows[2].channel) == (tmp_path / "b.wav", "0")
    assert "is from a command" in rows[3].unusable_reason
    assert "is a MixedCut" in rows[4].unusable_reason


@pytest.mark.parametrize(
    ("said", "found", "named"),
    [
        ("left", "left", "left"),
        ("Right", "right", "right"),
        ("1", None, "1"),
        ("1.0", None, "1"),
        ("0", None, "0"),
        ("", None, None),
        ("BBC", None, "refused"),
        ("R", None, "refused"),
        ("-1", None, "refused"),
        ("1.5", None, "refused"),
    ],
)
def test_a_row_names_its_channel_by_side_or_by_number_in_a_named_column(said, found, named, tmp_path):
    """Without being named, a column `channel` may count from 1, or state how many there are."""
    path = write(tmp_path / "list.csv", f"path,channel\na.wav,{said}\nb.wav,left\n".encode())
    assert list_recordings(path).rows[0].channel == found
    row = list_recordings(path, columns={"channel": "channel"}).rows[0]
    assert (row.channel if row.unusable_reason is None else "refused") == named


def test_a_column_that_is_named_as_the_channel_must_hold_one(tmp_path):
    path = write(tmp_path / "list.csv", b"path,side\na.wav,left\nb.wav,north\n")
    rows = list_recordings(path, columns={"channel": "side"}).rows
    assert rows[0].channel == "left"
    assert "the channel is 'north', expected left, right or a number from 0" in rows[1].unusable_reason


def test_a_channel_of_sph2pipe_is_counted_from_one(tmp_path):
    write(
        tmp_path / "wav.scp", b"a sph2pipe -f wav -p -c 1 a.sph |\nb sph2pipe -c 2 -f wav b.sph |\nc sph2pipe c.sph |\n"
    )
    assert [row.channel for row in list_recordings(tmp_path).rows] == ["0", "1", None]


def test_lhotses_supervisions_find_their_recordings(tmp_path):
    write(tmp_path / "x_recordings_train.jsonl", as_lines(LHOTSE_RECORDING))
    said = {"id": "s1", "recording_id": "r1", "start": 1.0, "duration": 2.0, "channel": 0, "text": "hello"}
    path = write(tmp_path / "x_supervisions_train.jsonl", as_lines(said, said | {"id": "s2", "recording_id": "r9"}))
    first, second = list_recordings(path).rows
    assert (first.id, first.offset, first.duration, first.text) == ("s1", 1.0, 2.0, "hello")
    assert second.unusable_reason == "line 2: the recording r9 is not in the manifest of recordings"
    assert fields(list_recordings(tmp_path / "x_recordings_train.jsonl").rows, "id") == [("r1",)]
    (tmp_path / "x_recordings_train.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"expected x_recordings_train\.jsonl beside it"):
        list_recordings(path)


@pytest.mark.parametrize("name", ["l.xlsx", "l.ods", "l.csv"])
def test_a_workbook_is_refused_by_name_with_the_way_out(name, tmp_path):
    with pytest.raises(CorpusError, match=r"is a workbook of a spreadsheet.*CSV UTF-8"):
        list_recordings(write(tmp_path / name, b"PK\x03\x04 and so on"))


@pytest.mark.parametrize(
    ("header", "values", "label"),
    [("transcript", "one", "happy"), ("transcript,arousal,valence", "one,0.5,0.25", None), ("label", "sad", "sad")],
)
def test_folders_of_described_recordings_are_splits_and_labels_only_beside_no_other_columns(
    header, values, label, tmp_path
):
    for split in ("train", "validation", "test"):
        touch(tmp_path / split, "a.wav", "happy/b.wav", "undescribed.wav")
        write(tmp_path / split / "metadata.csv", f"file_name,{header}\na.wav,{values}\nhappy/b.wav,{values}\n")
    rows = list_recordings(tmp_path).rows
    assert [row.split for row in rows] == ["test"] * 3 + ["train"] * 3 + ["valid"] * 3
    stated = "sad" if header == "label" else None
    assert fields(rows[:3], "id", "label") == [
        ("test/a.wav", stated),
        ("test/happy/b.wav", label),
        ("test/undescribed.wav", None),
    ]


def test_columns_of_values_in_the_metadata_of_folders_are_the_label(tmp_path):
    touch(tmp_path / "train", "a.wav")
    write(tmp_path / "train" / "metadata.csv", "file_name,arousal,valence\na.wav,0.5,0.25\n")
    assert fields(list_recordings(tmp_path).rows, "label", "split") == [(None, "train")]
    (row,) = list_recordings(tmp_path, columns={"label": ["arousal", "valence"]}).rows
    assert json.loads(row.label) == {"arousal": "0.5", "valence": "0.25"}
