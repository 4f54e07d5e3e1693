"""Folders and manifests become rows, or an error that names the line."""

import json
import os

import pytest

from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import CorpusError

ODD_NAMES = ["a b.wav", "a=b.wav", "a,b.wav", "a(b).wav", "[a].wav", "é.wav", "~tilde.wav", "😀.wav", "'quoted\".wav"]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ids(corpus):
    return [row.id for row in corpus.rows]


def test_a_folder_is_searched_with_all_below_it_sorted(tmp_path):
    corpus = list_recordings(touch(tmp_path, "b/two.flac", "a.wav", "b/c/UPPER.WAV", "a.flac"))
    assert ids(corpus) == ["a.flac", "a.wav", "b/c/UPPER.WAV", "b/two.flac"]
    assert all(row.path.is_file() for row in corpus.rows)


def test_what_is_no_audio_is_counted(tmp_path):
    corpus = list_recordings(touch(tmp_path, "a.wav", "b.txt", "c.txt", "d", ".hidden.wav"))
    assert ids(corpus) == ["a.wav"]
    assert corpus.skipped == {".txt": 2, "no extension": 1, ".wav": 1}


def test_unusual_names_are_rows_like_others(tmp_path):
    assert sorted(ids(list_recordings(touch(tmp_path, *ODD_NAMES)))) == sorted(ODD_NAMES)
    (tmp_path / "list.csv").write_text('path\n"a,b.wav"\né.wav\n~tilde.wav\n', encoding="utf-8")
    assert ids(list_recordings(tmp_path / "list.csv")) == ["a,b.wav", "é.wav", "~tilde.wav"]


def test_a_loop_of_links_gives_each_file_once(tmp_path):
    touch(tmp_path, "a/b/one.wav")
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "back")
    os.symlink("self.wav", tmp_path / "self.wav")
    rows = list_recordings(tmp_path).rows
    assert [row.id for row in rows if row.path.exists()] == ["a/b/one.wav"]


def test_a_single_file_is_a_corpus_of_one(tmp_path):
    assert ids(list_recordings(touch(tmp_path, "one.mp3") / "one.mp3")) == ["one.mp3"]
    assert ids(list_recordings(touch(tmp_path, "one") / "one")) == ["one"]


def test_an_empty_folder_names_the_extensions(tmp_path):
    with pytest.raises(CorpusError, match=r"it holds 1 × \.txt.*\.flac.*\.wav"):
        list_recordings(touch(tmp_path, "a.txt"))


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="no file or folder"):
        list_recordings(tmp_path / "absent")


MANIFESTS = {
    "l.csv": "id,path,text\nx/1,a.wav,hello\n,b/c.flac,\n",
    "l.tsv": "id\tpath\nx/1\ta.wav\n\tb/c.flac\n",
    "l.jsonl": '{"id": "x/1", "path": "a.wav"}\n\n{"audio_filepath": "b/c.flac", "duration": 1}\n',
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_give_their_ids_or_the_paths(name, tmp_path):
    (tmp_path / name).write_text(MANIFESTS[name])
    corpus = list_recordings(tmp_path / name)
    assert ids(corpus) == ["x/1", "b/c.flac"]
    assert [row.path for row in corpus.rows] == [tmp_path / "a.wav", tmp_path / "b/c.flac"]


def test_a_list_of_paths_and_another_root(tmp_path):
    (tmp_path / "l.txt").write_text("a.wav\n\nb/c.flac\n")
    corpus = list_recordings(tmp_path / "l.txt", root=tmp_path / "corpus")
    assert [row.path for row in corpus.rows] == [tmp_path / "corpus/a.wav", tmp_path / "corpus/b/c.flac"]
    inside = tmp_path / "corpus" / "x.wav"
    (tmp_path / "l.txt").write_text(f"{inside}\n")
    assert ids(list_recordings(tmp_path / "l.txt", root=tmp_path / "corpus")) == ["x.wav"]


BROKEN = {
    "a missing column": ("l.csv", "path,id\nb.wav\n", r"line 2: expected 2 columns"),
    "a column too many": ("l.csv", "path\nb.wav,x\n", r"line 2: expected 1 columns"),
    "no path": ("l.csv", "name\na.wav\n", r"line 1: expected a column `path`, found name"),
    "an empty path": ("l.csv", "path,id\n,1\n", r"line 2: the path is ''"),
    "a URL of another kind": ("l.jsonl", '{"path": "gopher://x.org/a.wav"}\n', r"line 1: is a URL .* gopher://"),
    "an id twice": ("l.csv", "path,id\na.wav,1\nb.wav,2\nc.wav,1\n", r"line 4: the id 1 is already used in line 2"),
    "an id that leaves": ("l.csv", "path,id\na.wav,../x\n", r"line 2: the id '../x'"),
    "an absolute id": ("l.csv", "path,id\na.wav,/x\n", r"line 2: the id '/x'"),
    "no JSON": ("l.jsonl", '{"path"\n{\n', r"line 1: is not JSON"),
    "no object": ("l.jsonl", "[1]\n", r"line 1: expected an object"),
    "no rows": ("l.csv", "path\n", r"lists no recordings"),
    "an open quote": ("l.csv", 'path\n"a.wav\n', r"line 2: cannot be read as a table with quoted values"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_manifest_names_the_line(case, tmp_path):
    name, text, says = BROKEN[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=says):
        list_recordings(tmp_path / name)


@pytest.mark.parametrize("name", ["l.csv", "l.txt", "l.jsonl"])
def test_a_manifest_that_is_not_text_is_an_error_with_its_line(name, tmp_path):
    (tmp_path / name).write_bytes(b"\n\xff\xfe\x00path\n")
    with pytest.raises(CorpusError, match="line 2: is not UTF-8"):
        list_recordings(tmp_path / name)


def test_json_that_is_too_deep_is_an_error(tmp_path):
    (tmp_path / "l.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(CorpusError, match="line 1: is not JSON"):
        list_recordings(tmp_path / "l.jsonl")


def test_a_folder_that_may_not_be_searched_becomes_a_row_that_fails(tmp_path, monkeypatch):
    touch(tmp_path, "open/a.wav", "closed/b.wav")
    right = os.scandir

    def scandir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return right(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert ids(list_recordings(tmp_path)) == ["closed", "open/a.wav"]


def test_a_name_too_long_for_any_file_system_is_an_error():
    with pytest.raises(CorpusError, match="no file or folder"):
        list_recordings("a" * 5000)


def test_a_long_manifest_is_listed_in_linear_time(tmp_path):
    lines = (json.dumps({"path": f"{n % 100}/{n}.wav"}) for n in range(20_000))
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    assert len(list_recordings(tmp_path / "l.jsonl").rows) == 20_000
