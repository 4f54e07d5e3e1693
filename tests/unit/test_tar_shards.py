"""Recordings in tar shards are read without unpacking, with stable ids, and all damage is reported."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
from conftest import SPEECH

from w2v_attn import read_audio
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import CorpusError
from w2v_attn.corpus.tar_shards import expand_braces
from w2v_attn.runs.row_reader import read_row, source_state

CLIPS = sorted(SPEECH.rglob("*.flac"))[:3]
FLAC = CLIPS[0].read_bytes()


def write(path, *members, form=tarfile.PAX_FORMAT):
    """Write a tar file of (name, bytes) or of whole TarInfos, and return its path."""
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def link(name, to, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def ids(corpus):
    return [row.id for row in corpus.rows]


def fields(corpus, *names):
    return [tuple(getattr(row, name) for name in names) for row in corpus.rows]


def reasons(corpus):
    found = {}
    for row in corpus.rows:
        try:
            read_row(row, sample_rate=16_000)
        except ValueError as error:
            found[row.id] = str(error)
    return found


def test_members_of_one_stem_are_one_sample(tmp_path):
    path = write(
        tmp_path / "c-000.tar",
        ("a.flac", FLAC),
        ("a.txt", "grüße\n".encode()),
        ("b.json", json.dumps({"sentence": "two", "speaker_id": 7, "split": "dev", "label": "x"}).encode()),
        ("b.flac", FLAC),
        ("b.cls", b"3"),
        ("./yes/c.left.WAV", FLAC),
        ("yes/c.right.wav", FLAC),
        ("yes/c.txt", b"both"),
        ("d.flac", FLAC),
        ("d.jpg", b"x"),
        ("._d.flac", b"of macOS"),
    )
    corpus = list_recordings(path)
    assert fields(corpus, "id", "text", "label", "speaker", "split") == [
        ("c-000/a.flac", "grüße", None, None, None),
        ("c-000/b.flac", "two", "3", "7", "valid"),
        ("c-000/yes/c.left.WAV", "both", "yes", None, None),
        ("c-000/yes/c.right.wav", "both", "yes", None, None),
        ("c-000/d.flac", None, None, None, None),
    ]
    assert corpus.skipped == {".jpg": 1, ".flac": 1}


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (None, "of the member", "of the member"),
        ({"text": "words", "label": "mood"}, "of the column", "of the column"),
        ({"label": ["arousal", "valence"]}, "of the member", '{"arousal": 0.5, "valence": 1}'),
        ({"text": "text", "label": "label"}, "of the key", "of the key"),
        ({"text": None, "label": None}, None, None),
    ],
)
def test_named_columns_go_before_the_members_of_a_sample(columns, text, label, tmp_path):
    metadata = {"words": "of the column", "mood": "of the column", "arousal": 0.5, "valence": 1}
    metadata |= {"text": "of the key", "label": "of the key"}
    path = write(
        tmp_path / "c.tar",
        ("folder/a.flac", FLAC),
        ("folder/a.txt", b"of the member"),
        ("folder/a.cls", b"of the member"),
        ("folder/a.json", json.dumps(metadata).encode()),
    )
    assert fields(list_recordings(path, columns=columns), "text", "label") == [(text, label)]


def test_a_sample_without_the_named_column_has_no_label_of_another_kind(tmp_path):
    path = write(
        tmp_path / "c.tar",
        *(("folder/a.flac", FLAC), ("folder/a.json", b'{"mood": "glad"}')),
        *(("folder/b.flac", FLAC), ("folder/b.cls", b"3")),
    )
    assert fields(list_recordings(path, columns={"label": "mood"}), "label") == [("glad",), (None,)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_recording_in_a_shard_is_the_recording(form, tmp_path):
    long = "folder/" * 12 + "é" * 20 + ".flac"
    names = ["a.flac", "b.flac", long]
    write(tmp_path / "c.tar", *zip(names, (clip.read_bytes() for clip in CLIPS), strict=True), form=form)
    corpus = list_recordings(tmp_path / "c.tar")
    assert ids(corpus) == [f"c/{name}" for name in names]
    for row, clip in zip(corpus.rows, CLIPS, strict=True):
        assert row.content.size == clip.stat().st_size
        assert torch.equal(read_row(row, sample_rate=16_000).waveform, read_audio(clip))


def test_rows_stand_as_their_bytes_do_so_each_shard_is_read_from_beginning_to_end(tmp_path):
    for number in range(3):
        write(tmp_path / f"c-{number}.tar", *((f"{n}.flac", FLAC) for n in (5, 2, 9)))
    corpus = list_recordings(tmp_path)
    assert ids(corpus) == [f"c-{number}/{n}.flac" for number in range(3) for n in (5, 2, 9)]
    places = [(row.content.shard, row.content.begin) for row in corpus.rows]
    assert places == sorted(places)


def test_braces_name_shards_as_webdataset_does(tmp_path, monkeypatch):
    names = ["train/c-008.tar", "train/c-009.tar", "train/c-010.tar", "dev/c-008.tar", "dev/c-009.tar", "dev/c-010.tar"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ("a.flac", FLAC))
    monkeypatch.chdir(tmp_path)
    expected = [f"{name.removesuffix('.tar')}/a.flac" for name in names]
    for audio in ("{train,dev}/c-{008..010}.tar", f"{tmp_path}/{{train,dev}}/c-0{{08..10}}.tar"):
        assert ids(list_recordings(audio)) == expected
    webdataset = pytest.importorskip("webdataset")
    for audio in ("c-{000..123}.tar", "{a,b}-{8..11}.tar"):
        assert [str(path) for path in expand_braces(audio)] == webdataset.shardlists.expand_urls(audio)


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        ("c-{000..003}.tar", r"no file c-001\.tar, c-003\.tar: 2 of 4 shards are missing"),
        ("c-{3..0}.tar", r"counts down: write \{0\.\.3\}"),
        ("c-{x}.tar", r"expected \{000\.\.123\} or \{a,b\}"),
        ("c-{000..001}.tgz", r"c-000\.tgz is compressed.*gunzip"),
        ("x.tar.gz", r"x\.tar\.gz is compressed: expected \.tar"),
    ],
)
def test_shards_that_cannot_be_are_refused_with_the_way_out(audio, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c-000.tar", "c-002.tar", "x.tar.gz"):
        write(tmp_path / name, ("a.flac", FLAC))
    with pytest.raises(CorpusError, match=says):
        list_recordings(audio)


WRONG = {
    "a name twice": (
        [("a.flac", FLAC), ("b.flac", FLAC), ("a.flac", FLAC)],
        r"c\.tar: the name a\.flac occurs twice",
    ),
    "a text twice": ([("a.flac", FLAC), ("a.txt", b"x"), ("./a.txt", b"y")], r"c\.tar: the name a\.txt occurs twice"),
    "a name that leaves": (
        [("a.flac", FLAC), ("x/../../b.flac", FLAC)],
        r"c\.tar: the name x/\.\./\.\./b\.flac leaves",
    ),
    "no JSON": ([("a.flac", FLAC), ("a.json", b"{")], r"c\.tar, a\.json: cannot be read"),
    "no object": ([("a.flac", FLAC), ("a.json", b"[1]")], r"c\.tar, a\.json: expected an object"),
    "no UTF-8": ([("a.flac", FLAC), ("a.txt", b"\xff")], r"c\.tar, a\.txt: cannot be read"),
    "no split": ([("a.flac", FLAC), ("a.json", b'{"split": "rest"}')], r"c\.tar, a\.flac: the split is 'rest'"),
    "a text of megabytes": ([("a.flac", FLAC), ("a.txt", bytes(1 << 21))], r"c\.tar, a\.txt: has 2,097,152 bytes"),
    "no audio": ([("a.txt", b"x"), ("b.npy", b"x")], r"found no audio in .*c\.tar \(they hold 1 × \.npy"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_shard_whose_contents_cannot_be_is_refused_by_name(case, tmp_path):
    members, says = WRONG[case]
    with pytest.raises(CorpusError, match=says):
        list_recordings(write(tmp_path / "c.tar", *members))


def test_two_shards_of_one_name_are_refused(tmp_path):
    for name in ("c.tar", "c.TAR"):
        write(tmp_path / name, ("a.flac", FLAC))
    with pytest.raises(CorpusError, match=r"c\.tar holds c/a\.flac, which .*c\.TAR holds already"):
        list_recordings(tmp_path)


def test_links_and_devices_are_named_and_not_followed(tmp_path):
    (tmp_path / "secret.flac").write_bytes(FLAC)
    path = write(
        tmp_path / "c.tar",
        ("a.flac", FLAC),
        link("soft.flac", "../secret.flac"),
        link("hard.flac", "a.flac", tarfile.LNKTYPE),
        link("device.flac", "", tarfile.CHRTYPE),
        link("pipe.wav", "", tarfile.FIFOTYPE),
        ("/root/b.flac", FLAC),
    )
    found = reasons(list_recordings(path))
    assert found.keys() == {"c/soft.flac", "c/hard.flac", "c/device.flac", "c/pipe.wav"}
    assert "is a link to ../secret.flac in the shard" in found["c/soft.flac"]
    assert all("which is not supported" in reason for reason in found.values())


def damaged(path, kind):
    content = bytearray(path.read_bytes())
    third = content.rindex(b"2.flac")
    if kind == "cut in a recording":
        content = content[: third + 512 + 100]
    elif kind == "cut in a header":
        content = content[: third + 100]
    elif kind == "cut between two":
        content = content[:third]
    elif kind == "without its end":
        content = content[: content.index(CLIPS[2].read_bytes()) + -(-CLIPS[2].stat().st_size // 512) * 512]
    else:
        content[third + 150] ^= 0xFF  # the checksum of the header
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("cut in a recording", 2),
        ("cut in a header", 2),
        ("cut between two", 2),
        ("without its end", 3),
        ("a damaged header", 2),
    ],
)
def test_of_a_broken_shard_what_is_whole_is_read_and_the_shard_is_named(kind, whole, tmp_path):
    members = [(f"{number}.flac", clip.read_bytes()) for number, clip in enumerate(CLIPS)]
    for name in ("c-0.tar", "c-1.tar", "c-2.tar"):
        write(tmp_path / name, *members)
    damaged(tmp_path / "c-1.tar", kind)
    corpus = list_recordings(tmp_path)
    assert len(corpus.rows) == 3 + whole + 1 + 3
    found = reasons(corpus)
    assert list(found) == ["c-1.tar"]
    assert f"Recordings after the first {whole} in it, if any, are lost" in found["c-1.tar"]


def test_files_that_are_no_shards_are_refused_alone_and_named_among_others(tmp_path):
    (tmp_path / "text.tar").write_text("hello")
    (tmp_path / "empty.tar").touch()
    with pytest.raises(CorpusError, match=r"found no audio in .*text\.tar: text\.tar is damaged, or not a tar file"):
        list_recordings(tmp_path / "text.tar")
    with pytest.raises(CorpusError, match=r"empty\.tar is empty \(0 bytes\)"):
        list_recordings(tmp_path / "empty.tar")
    write(tmp_path / "good.tar", ("a.flac", FLAC))
    assert reasons(list_recordings(tmp_path)).keys() == {"empty.tar", "text.tar"}


def test_beside_recordings_a_shard_is_only_counted(tmp_path):
    write(tmp_path / "c.tar", ("a.flac", FLAC))
    (tmp_path / "a.flac").write_bytes(FLAC)
    corpus = list_recordings(tmp_path)
    assert ids(corpus) == ["a.flac"]
    assert corpus.skipped == {".tar": 1}


def test_a_changed_shard_is_another_state_and_one_that_is_gone_has_none(tmp_path):
    path = write(tmp_path / "c.tar", ("a.flac", FLAC), ("b.flac", FLAC))
    first, second = list_recordings(path).rows
    state = source_state(first)
    assert state != source_state(second)
    assert source_state(list_recordings(path).rows[0]) == state
    with path.open("r+b") as file:
        file.truncate(first.content.begin + 10)
    assert source_state(first) != state
    assert reasons(list_recordings(write(tmp_path / "d.tar", ("a.flac", FLAC)))) == {}
    with pytest.raises(ValueError, match=r"the shard .*c\.tar is shorter than it was"):
        read_row(first, sample_rate=16_000)
    path.unlink()
    assert source_state(first) is None
    with pytest.raises(ValueError, match=r"the shard .*c\.tar: No such file"):
        read_row(first, sample_rate=16_000)


def test_data_sets_that_changed_hold_other_recordings(tmp_path):
    datasets = pytest.importorskip("datasets")
    states, rows = {}, {}
    for clip in CLIPS[:2]:
        part = datasets.Dataset.from_dict({"audio": [{"bytes": clip.read_bytes(), "path": None}] * 2})
        part = part.cast_column("audio", datasets.Audio(decode=False))
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        part.save_to_disk(str(tmp_path / "set"))
        part.to_parquet(str(tmp_path / "train.parquet"))
        for name in ("set", "train.parquet"):
            rows.setdefault(name, []).append(list_recordings(tmp_path / name).rows)
            states.setdefault(name, []).append([source_state(row) for row in rows[name][-1]])
    for name in rows:
        now = rows[name][1][0]
        assert len({*states[name][0], *states[name][1]}) == 4, name
        assert [source_state(row) for row in list_recordings(tmp_path / name).rows] == states[name][1]
        assert now.content() == CLIPS[1].read_bytes()
    os.utime(tmp_path / "train.parquet", (1, 1))  # written again, with as many bytes
    assert source_state(rows["train.parquet"][1][0]) not in states["train.parquet"][1]
    with pytest.raises(CorpusError, match="changed since it was listed"):
        rows["set"][0][0].content()
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"train\.parquet cannot be read as Parquet"):
        list_recordings(tmp_path / "train.parquet")
    with pytest.raises(CorpusError, match=r"cannot be read: .*train\.parquet"):
        rows["train.parquet"][1][0].content()


def test_a_run_over_shards_skips_what_is_there_names_what_is_broken_and_sees_a_change(call, tmp_path):
    for number, clip in enumerate(CLIPS):
        write(tmp_path / f"c-{number}.tar", ("a.flac", clip.read_bytes()), (f"{number}.wav", b"no audio"))
    code, out, _ = call("extract", "audio=c-{0..2}.tar", "output=out")
    assert code == 1
    assert "3 of 6" in out
    lines = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["c-0/0.wav", "c-1/1.wav", "c-2/2.wav"]
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(files) == 3
    write(tmp_path / "c-1.tar", ("a.flac", CLIPS[0].read_bytes()))
    code, out, _ = call("extract", 'audio="c-{0..2}.tar"', "output=out")
    assert "already there │ 2" in out
    assert "3 of 5" in out
    changed = [path.parent.name for path, content in files.items() if path.read_bytes() != content]
    assert changed == ["c-1"]


@pytest.mark.parametrize("words", [["c-0.tar", "c-1.tar"], ["audio=c-0.tar", "audio=c-1.tar"], ["c-{0..1}.tar"]])
def test_braces_mean_the_same_whether_the_shell_expands_them_or_not(words, call, tmp_path):
    for name in ("c-0.tar", "c-1.tar"):
        write(tmp_path / name, ("a.flac", CLIPS[0].read_bytes()))
    code, _, err = call("extract", *words, "output=out")
    assert (code, err.count("error")) == (0, 0)
    out = tmp_path / "out"
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.safetensors"))
    assert written == ["c-0/a.flac.safetensors", "c-1/a.flac.safetensors"]


def test_rows_reach_other_processes(tmp_path):
    """Content holds the location of the bytes, not the bytes."""
    rows = list(list_recordings(write(tmp_path / "c.tar", ("a.flac", FLAC), link("b.flac", "a.flac"))).rows)
    if (datasets := pytest.importorskip("datasets")) is not None:
        audio = {"bytes": FLAC, "path": "clip.flac"}
        part = datasets.Dataset.from_dict({"audio": [audio]}).cast_column("audio", datasets.Audio(decode=False))
        part.save_to_disk(str(tmp_path / "set"))
        part.to_parquet(str(tmp_path / "train.parquet"))
        rows += list_recordings(tmp_path / "set").rows + list_recordings(tmp_path / "train.parquet").rows
    sent = pickle.dumps(rows)
    assert len(sent) < len(FLAC)
    code = (
        "import pickle, sys\n"
        "for row in pickle.load(sys.stdin.buffer):\n"
        "    try: print(len(row.content()))\n"
        "    except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    lengths = done.stdout.decode().splitlines()
    assert lengths[0] == lengths[2] == lengths[3] == str(len(FLAC))
    assert "is a link to a.flac" in lengths[1]


@pytest.mark.parametrize("named", [{"text": "nope"}, {"label": ["text", "nope"]}, {"path": "nope"}])
def test_a_named_column_that_is_not_there_is_refused_in_every_container(named, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"audio": [{"bytes": FLAC, "path": "a.flac"}], "text": ["hello"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    write(tmp_path / "a.tar", ("a.flac", FLAC), ("a.json", b'{"text": "hello"}'))
    write(tmp_path / "b.tar", ("b.flac", FLAC), ("b.txt", b"hello"))
    for name in ("a.parquet", "a.tar", "b.tar"):
        with pytest.raises(CorpusError, match=r"has no column nope, which columns names: its columns are .*text"):
            list_recordings(tmp_path / name, columns=named)
        assert list_recordings(tmp_path / name, columns={"text": "text"}).rows[0].text == "hello"


def test_recordings_in_parquet_and_data_sets_keep_their_channel_and_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"side": ["left", "right", "north"], "subset": ["test", "xl", ""], "text": ["a", "b", "c"]}
    part = datasets.Dataset.from_dict({"audio": [{"bytes": FLAC, "path": "a.flac"}] * 3, **columns})
    part = part.cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": part}).save_to_disk(str(tmp_path / "set"))
    part.to_parquet(str(tmp_path / "train.parquet"))
    for name in ("set", "train.parquet"):
        corpus = list_recordings(tmp_path / name, columns={"channel": "side"})
        assert fields(corpus, "channel", "split", "text")[:2] == [("left", "test", "a"), ("right", "train", "b")], name
        assert "row 2: the channel is 'north'" in corpus.rows[2].unusable_reason
