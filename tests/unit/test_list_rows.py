"""Columns, ids and paths of lists: what is understood, what is refused, and what a row that cannot be used costs."""

import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from w2v_attn.corpus.list_formats.list_format import ListOptions
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.records import Record, corpus_of
from w2v_attn.corpus.remote_files import RemoteFile
from w2v_attn.corpus.rows import CorpusError, Unusable


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def ids(rows):
    return [row.id for row in rows]


def reasons(rows):
    return {row.line: row.unusable_reason for row in rows if row.unusable_reason is not None}


# ---------------------------------------------------------------------------------------------- rows that are broken

BROKEN_ROWS = {
    "l.csv": ("path,text,id,offset,duration\n", "{},x,{},,\n", {
        "too few columns": ("b.wav\n", "expected 5 columns"),
        "too many columns": ("b.wav,x,,,,y\n", "expected 5 columns"),
        "no path": (",x,,,\n", "the path is ''"),
        "only spaces": ("  ,x,,,\n", "the path is '  '"),
        "no seconds": ("b.wav,x,,noon,\n", "offset is 'noon', expected seconds"),
        "a negative offset": ("b.wav,x,,-1,\n", "offset is '-1', expected seconds"),
        "an id that leaves": ("b.wav,x,../b,,\n", "the id '../b' cannot name a file"),
        "an absolute id": ("b.wav,x,/b,,\n", "the id '/b' cannot name a file"),
        "no UTF-8": (b"b\xff.wav,x,,,\n", "is not UTF-8"),
        "an open quote": ('"b.wav,x,,,\n', "cannot be read as a table with quoted values"),
        "a stray quote": ('"b" c.wav,x,,,\n', "cannot be read as a table with quoted values"),
        "a zero": ("b\0.wav,x,,,\n", "expected the path of a file"),
    }),
    "l.jsonl": ("", '{{"path": "{}", "text": "x", "id": "{}"}}\n', {
        "no JSON": ("{\n", "is not JSON"),
        "no object": ("[1]\n", "expected an object"),
        "no path": ('{"text": "x"}\n', "expected a column `path`, found text"),
        "null": ('{"path": null}\n', "the path is None"),
        "a number": ('{"path": 5}\n', "the path is 5"),
        "NaN": ('{"path": NaN}\n', "the path is nan"),
        "an empty path": ('{"path": ""}\n', "the path is ''"),
        "no character": ('{"path": "\\ud800.wav"}\n', "has a character that no file name has"),
        "no URL": ('{"path": "http://[x/a.wav"}\n', "is not a URL"),
        "an end too early": ('{"path": "b.wav", "start": 3, "end": 2}\n', "end is 2, which is not after start 3"),
        "no UTF-8": (b'{"path": "\xff.wav"}\n', "is not UTF-8"),
        "too deep": ("[" * 100_000 + "\n", "is not JSON"),
    }),
    "l.txt": ("", "{}\n", {"no UTF-8": (b"b\xff.wav\n", "is not UTF-8"), "a zero": ("b\0.wav\n", "expected the path")}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, (_, _, cases) in BROKEN_ROWS.items() for case in cases]
)
def test_a_row_that_cannot_be_used_costs_only_that_row(name, case, tmp_path):
    header, good, cases = BROKEN_ROWS[name]
    bad, says = cases[case]
    bad = bad.encode() if isinstance(bad, str) else bad
    text = header.encode() + good.format("a.wav", "a").encode() + bad + good.format("c.wav", "c").encode()
    rows = list_recordings(write(tmp_path / name, text)).rows
    line = 2 + bool(header)
    assert [row.path for row in rows if row.unusable_reason is None] == [tmp_path / "a.wav", tmp_path / "c.wav"]
    assert reasons(rows).keys() == {line}
    assert rows[1].unusable_reason.startswith(f"line {line}: ")
    assert says in rows[1].unusable_reason
    assert rows[1].id == f"{name}:{line}"


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, (_, _, cases) in BROKEN_ROWS.items() for case in cases]
)
def test_a_list_without_a_row_that_can_be_used_is_refused_with_the_first_reason(name, case, tmp_path):
    header, _, cases = BROKEN_ROWS[name]
    bad, says = cases[case]
    bad = bad.encode() if isinstance(bad, str) else bad
    with pytest.raises(CorpusError) as error:
        list_recordings(write(tmp_path / name, header.encode() + bad * 3))
    assert f"line {1 + bool(header)}: " in str(error.value)
    assert says in str(error.value)


def test_an_open_quote_does_not_swallow_the_rest_of_the_list(tmp_path):
    lines = [f'{n}.wav,"text {n}"' for n in range(500)]
    lines[3] = '3.wav,"text'
    rows = list_recordings(write(tmp_path / "l.csv", "path,text\n" + "\n".join(lines) + "\n")).rows
    assert len(rows) == 500
    assert reasons(rows).keys() == {5}


def test_quoted_values_may_span_lines_and_hold_separators_and_quotes(tmp_path):
    text = 'path,text\na.wav,"one, ""two""\nthree"\nb.wav,four\n'
    rows = list_recordings(write(tmp_path / "l.csv", text)).rows
    assert [(row.text, row.line) for row in rows] == [('one, "two"\nthree', 2), ("four", 4)]


# ---------------------------------------------------------------------------------------------------------- columns

SPELLINGS = {
    "path": "audio_filepath file_name filename audio_path wav recording clip Path AudioPath".split(),
    "text": "sentence transcript transcription words wrd normalized_text Text".split(),
    "label": "class emotion intent category command Label".split(),
    "speaker": "speaker_id spk_id client_id speakerId Speaker".split(),
    "split": "subset set partition Split".split(),
}


@pytest.mark.parametrize(("field", "name"), [(field, name) for field in SPELLINGS for name in SPELLINGS[field]])
def test_usual_names_of_columns_are_known(field, name, tmp_path):
    values = {"path": "a.wav", "text": "hello", "label": "yes", "speaker": "ann", "split": "valid"}
    renamed = {name if key == field else key: value for key, value in values.items()}
    (row,) = list_recordings(write(tmp_path / "l.jsonl", json.dumps(renamed))).rows
    assert {key: getattr(row, key) for key in values if key != "path"} | {"path": row.id} == values


@pytest.mark.parametrize("name", ["l.csv", "l.jsonl", "l.tsv"])
def test_columns_can_be_named(name, tmp_path):
    values = {"where": "a.wav", "words": "b", "said": "hello", "text": "not this"}
    tab = "\t" if name == "l.tsv" else ","
    text = json.dumps(values) if name == "l.jsonl" else f"{tab.join(values)}\n{tab.join(values.values())}\n"
    (row,) = list_recordings(write(tmp_path / name, text), columns={"path": "where", "text": "said"}).rows
    assert (row.id, row.text) == ("a.wav", "hello")


def test_several_labels_are_json(tmp_path):
    lines = [
        {"path": "a.wav", "label": ["é", "b"]},
        {"path": "b.wav", "label": {"valence": 0.5}},
        {"path": "c.wav", "label": 3},
    ]
    rows = list_recordings(write(tmp_path / "l.jsonl", "\n".join(map(json.dumps, lines)))).rows
    assert [row.label for row in rows] == ['["é", "b"]', '{"valence": 0.5}', "3"]


def test_columns_of_a_list_without_a_header_are_numbers(tmp_path):
    path = write(tmp_path / "l.csv", 'happy,a.wav,"Hello, you"\nsad,b.wav,Bye\n')
    rows = list_recordings(path, columns={"path": 2, "text": "3", "label": 1}).rows
    assert [(row.id, row.text, row.label, row.line) for row in rows] == [
        ("a.wav", "Hello, you", "happy", 1),
        ("b.wav", "Bye", "sad", 2),
    ]


def test_a_field_that_is_not_wanted_is_not_read(tmp_path):
    path = write(tmp_path / "l.csv", "id,path,text\n1,a.wav,x\n1,b.wav,y\n")
    with pytest.raises(CorpusError, match=r"line 3: the id 1 is already used in line 2"):
        list_recordings(path)
    assert ids(list_recordings(path, columns={"id": None}).rows) == ["a.wav", "b.wav"]


def test_wrong_columns_are_refused_with_those_there_are(tmp_path):
    path = write(tmp_path / "l.csv", "path,text\na.wav,x\n")
    with pytest.raises(CorpusError, match=r"no column words, which data\.columns names: its columns are path, text"):
        list_recordings(path, columns={"text": "words"}, key_prefix="data.")
    with pytest.raises(CorpusError, match=r"there is no field txt; expected some of path, id, text"):
        list_recordings(path, columns={"txt": "text"})


UNKNOWN = {
    "other names": ("l.csv", "sound;speech\nx;y\n", r"line 1: .*found sound, speech.*2 columns between semicolons.*"
                    r"'data\.columns=\{path: sound, text: speech\}'"),
    "no header": ("l.csv", "a.wav,hello\nb.wav,you\n", r"The line is 'a\.wav,hello'.*no header.*\{path: 1, text: 2\}"),
    "a speaker between": ("l.csv", "wav/1.wav|male1|Good day\n", r"3 columns between \|.*\{path: 1, text: 3\}"),
    "JSON": ("l.jsonl", '{"sound": "a.wav"}\n', r"line 1: expected a column `path`, found sound.*\{path: sound\}"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_list_that_is_not_understood_says_what_it_looks_like_and_which_keys_help(case, tmp_path):
    name, text, says = UNKNOWN[case]
    with pytest.raises(CorpusError, match=says):
        list_recordings(write(tmp_path / name, text), key_prefix="data.")


def test_two_columns_that_may_be_the_text_are_named(tmp_path, caplog):
    path = write(tmp_path / "l.csv", "path,sentence,transcript\na.wav,one,one\nb.wav,two,2\n")
    with caplog.at_level(logging.WARNING):
        rows = list_recordings(path).rows
    assert [row.text for row in rows] == ["one", "two"]
    (said,) = caplog.messages
    assert "the columns sentence and transcript differ (line 3)" in said
    assert "'columns={text: transcript}'" in said


def test_nothing_is_said_where_the_columns_agree_or_the_user_chose(tmp_path, caplog):
    agreed = write(tmp_path / "l.csv", "path,sentence,transcript\na.wav,one,one\n")
    chosen = write(tmp_path / "m.csv", "path,sentence,transcript\na.wav,one,1\n")
    with caplog.at_level(logging.WARNING):
        list_recordings(agreed)
        (row,) = list_recordings(chosen, columns={"text": "transcript"}).rows
    assert (row.text, caplog.messages) == ("1", [])


def test_a_subset_that_is_no_split_is_none(tmp_path):
    rows = list_recordings(write(tmp_path / "l.csv", "path,subset\na.wav,XL\nb.wav,S\n")).rows
    assert [row.split for row in rows] == [None, None]
    rows = list_recordings(write(tmp_path / "m.csv", "path,subset\na.wav,train-clean\nb.wav,other\n")).rows
    assert rows[0].split == "train"
    assert reasons(rows) == {3: "line 3: the split is 'other', expected train, valid or test"}


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        ("offset,duration", "1.5,2", (1.5, 2.0)),
        ("start,end", "1.5,3.5", (1.5, 2.0)),
        ("begin,duration", "1.5,2", (1.5, 2.0)),
        ("start_time,end_time", "1.5,3.5", (1.5, 2.0)),
        ("onset,offset", "1.5,3.5", (1.5, 2.0)),
        ("start,end", '"1,5","3,5"', (1.5, 2.0)),
        ("duration,end", "3.5,3.5", (0.0, None)),
        ("offset,duration", ",2", (0.0, 2.0)),
    ],
)
def test_parts_are_named_in_seconds(names, values, expected, tmp_path):
    (row,) = list_recordings(write(tmp_path / "l.csv", f"path,{names}\na.wav,{values}\n")).rows
    assert (row.offset, row.duration) == expected


# -------------------------------------------------------------------------------------------------- paths and ids


def test_absolute_paths_and_paths_that_leave_the_folder_are_read(tmp_path):
    audio = tmp_path / "audio"
    text = f"path\n{audio}/x/a.wav\n../audio/y/b.wav\n"
    rows = list_recordings(write(tmp_path / "lists/l.csv", text)).rows
    assert ids(rows) == ["x/a.wav", "y/b.wav"]
    assert [os.path.abspath(row.path) for row in rows] == [f"{audio}/x/a.wav", f"{audio}/y/b.wav"]
    inside = write(tmp_path / "m.csv", f"path\n{audio}/x/a.wav\n")
    assert ids(list_recordings(inside).rows) == ["audio/x/a.wav"]
    outside = write(tmp_path / "lists/m.csv", f"path\n{audio}/x/a.wav\n")
    assert ids(list_recordings(outside).rows) == ["a.wav"]
    assert ids(list_recordings(outside, root=tmp_path).rows) == ["audio/x/a.wav"]


def test_a_file_url_is_a_path(tmp_path):
    (row,) = list_recordings(write(tmp_path / "l.txt", f"{(tmp_path / 'a b.wav').as_uri()}\n")).rows
    assert (row.path, row.id) == (tmp_path / "a b.wav", "a b.wav")


def test_parts_of_one_file_get_ids_from_path_and_offset(tmp_path):
    parts = [(0, 2), (2, 2.5), (2, None), (8.0005, 0.1)]
    lines = [{"audio_filepath": "x/a.wav", "offset": o, "duration": d} for o, d in parts]
    lines.append({"audio_filepath": "b.wav", "offset": 1, "duration": 2})
    rows = list_recordings(write(tmp_path / "l.jsonl", "\n".join(map(json.dumps, lines)))).rows
    expected = [
        "x/a.wav@0.000-2.000",
        "x/a.wav@2.000-4.500",
        "x/a.wav@2.000-",
        "x/a.wav@8.000500-8.100500",
        "b.wav",
    ]
    assert ids(rows) == expected
    backwards = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, lines[::-1])))
    assert ids(list_recordings(backwards).rows) == expected[::-1]


def test_a_root_without_relative_paths_is_said_to_have_no_effect(tmp_path, caplog):
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, "")
    relative, absolute = (
        write(tmp_path / f"{name}.csv", f"path\n{path}\n") for name, path in (("r", "a.wav"), ("a", tmp_path / "a.wav"))
    )
    for audio in (tmp_path / "a.wav", tmp_path, absolute, [tmp_path / "a.wav", tmp_path / "b.wav"]):
        caplog.clear()
        list_recordings(audio, root="nope", key_prefix="data.")
        assert "data.root=nope has no effect" in caplog.text
    caplog.clear()
    list_recordings(relative, root="nope")
    list_recordings([tmp_path / "b.wav", relative], root=tmp_path)
    assert caplog.text == ""


def test_a_file_that_is_listed_twice_has_two_rows(tmp_path):
    rows = list_recordings(write(tmp_path / "l.csv", "path,text\na.wav,one\na.wav,two\na.wav,one\n")).rows
    assert ids(rows) == ["a.wav", "a.wav#2", "a.wav#3"]
    assert [row.text for row in rows] == ["one", "two", "one"]


def test_an_id_that_is_given_twice_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "l.csv", "path,id\na.wav,1\n../b.wav,2\nc.wav,1\n")
    with pytest.raises(CorpusError, match=r"line 4: the id 1 is already used in line 2\. Make ids unique, or leave"):
        list_recordings(path)


names = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)
paths = st.builds(
    "/".join,
    st.lists(st.one_of(names, st.sampled_from(["..", ".", "a", "~", "C:\\x", "http:", ":"])), min_size=1, max_size=5),
)
seconds = st.one_of(st.none(), st.floats(0, 1e4), st.sampled_from([0.0, 1.0, 2.5]))
records = st.fixed_dictionaries(
    {"path": st.one_of(paths, paths.map("/".__add__), st.none(), st.integers())},
    optional={"id": st.one_of(paths, st.none(), st.just("")), "offset": seconds, "duration": seconds, "text": names},
)


@settings(max_examples=300, deadline=None)
@given(st.lists(records, min_size=1, max_size=8))
def test_ids_are_unique_and_stay_inside_the_output_whatever_a_list_holds(values):
    own = [Path(value["id"]) for value in values if value.get("id")]
    assume(len(set(own)) == len(own))
    listed = [Record(f"line {n}", value, n) for n, value in enumerate([{"path": "good.wav"}, *values], 1)]
    rows = corpus_of(listed, Path("/lists/l.jsonl"), ListOptions()).rows
    assert len(rows) == len(listed)
    assert len(set(ids(rows))) == len(rows)
    for row in rows:
        written = os.path.normpath(os.path.join("/output", f"{row.id}.safetensors"))
        assert written.startswith("/output/")
        assert not any(part in ("..", "") for part in row.id.split("/"))
        assert row.content is None or isinstance(row.content, Unusable | RemoteFile)
    assert ids(corpus_of(listed, Path("/lists/l.jsonl"), ListOptions()).rows) == ids(rows)


def test_two_channels_of_one_recording_are_two_rows_of_several_sources(tmp_path):
    for side in ("left", "right"):
        write(tmp_path / f"{side}.csv", f"path,channel\na.wav,{side}\n")
    sources = [tmp_path / f"{side}.csv" for side in ("left", "right", "left", "right")]
    expected = [("a.wav@left", "left"), ("a.wav@right", "right")]
    assert [(row.id, row.channel) for row in list_recordings(sources).rows] == expected
    both = write(tmp_path / "both.csv", "path,channel\na.wav,right\na.wav,left\n")
    assert [(row.id, row.channel) for row in list_recordings([both, *sources]).rows] == expected[::-1]
    assert [(row.id, row.channel) for row in list_recordings([*sources, both]).rows] == expected
    assert [row.id for row in list_recordings(sources[:1] * 2).rows] == ["a.wav"]


def test_the_ids_of_channels_of_one_file_name_the_channel(tmp_path):
    path = write(
        tmp_path / "l.csv",
        "path,side,offset,duration\na.wav,0,,\na.wav,1,,\na.wav,1,,\nb.wav,right,0,1\nb.wav,left,0,1\nb.wav,,2,1\n"
        "c.wav,left,,\nd.wav,left,0,1\nd.wav,left,1,1\n",
    )
    rows = list_recordings(path, columns={"channel": "side"}).rows
    assert ids(rows) == [
        *("a.wav@0", "a.wav@1", "a.wav@1#2"),
        *("b.wav@0.000-1.000@right", "b.wav@0.000-1.000@left", "b.wav@2.000-3.000"),
        *("c.wav", "d.wav@0.000-1.000", "d.wav@1.000-2.000"),
    ]


def test_other_files_of_one_id_are_refused_whatever_their_channels_are(tmp_path):
    for side in ("left", "right"):
        write(tmp_path / f"{side}.csv", f"path,id,channel\n{side}.wav,a,{side}\n")
    sources = [tmp_path / f"{side}.csv" for side in ("left", "right")]
    with pytest.raises(CorpusError, match=r"two recordings have the id a: .*left\.wav and .*right\.wav"):
        list_recordings(sources)


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("0", "zero"),
        ("0;1", "zero;one"),
        ("1|0", "one|zero"),
        ("0, 1", "zero,one"),
        ("0;2", "0;2"),
        ([0, 2], '["zero", 2]'),
        (["0", "1"], '["zero", "one"]'),
        ("[0", "[0"),
    ],
)
def test_each_of_several_labels_gets_its_name(label, named, tmp_path):
    path = write(tmp_path / "l.jsonl", json.dumps({"path": "a.wav", "label": label}))
    assert list_recordings(path, names={"0": "zero", "1": "one"}).rows[0].label == named
