"""Files about a recording are what the libraries of their formats read, whatever the words are."""

import csv
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from praatio import textgrid
from pympi import Elan

from w2v_attn.corpus.rows import Row
from w2v_attn.features.segments import read_segments
from w2v_attn.features.textgrids import read_textgrid
from w2v_attn.transcription.formats.annotation import Annotation
from w2v_attn.transcription.formats.annotation_formats import FORMATS, find_formats
from w2v_attn.transcription.outputs import Label, Labels, Spans, Transcript, Word, output_of_record
from w2v_attn.transcription.transcription_run import annotation_of

WORDS = (
    Word('say "hi"\nyou', 0.1, 0.5, 0.9),  # a quote and a line break
    Word("a<b>&c", 0.4, 0.6, 0.8),  # overlaps the word before
    Word("ḧ", 0.6, 0.6, 0.7),  # of length 0
    Word("!bang", 0.6, 1.0, 0.7),  # begins a comment in a TextGrid, if it is not quoted
    Word("end", 9.0, 11.5, 0.5),  # beyond the end of the recording
)
SAID = ['say "hi" you', "a<b>&c", "ḧ", "!bang", "end"]
TRANSCRIPT = Transcript(" ".join(SAID), 0.8, WORDS)
ROW = Row("x y/talk 1.flac", Path("rec/talk 1.flac"), speaker="Ann B")


def rendered(name, found=TRANSCRIPT, row=ROW, duration=10.0):
    [kind] = find_formats([name])
    return kind.render(annotation_of(row, duration, found))


def saved(folder, name, **about):
    [kind] = find_formats([name])
    path = folder / f"talk.{kind.extension}"
    path.write_text(rendered(name, **about), encoding="utf-8")
    return path


@pytest.mark.parametrize("read", ["ours", "theirs"])
def test_a_textgrid_has_the_words_in_intervals_that_fill_the_recording(tmp_path, read):
    path = saved(tmp_path, "TextGrid")
    if read == "ours":
        intervals = read_textgrid(path)["words"]
    else:
        opened = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
        intervals = [tuple(entry) for entry in opened.getTier("words").entries]
    assert [text for *_, text in intervals if text] == SAID
    assert intervals[0][0] == 0
    assert intervals[-1][1] == 11.5
    for (_, end, _), (start, *_) in pairwise(intervals):
        assert start == end
    assert all(start < end for start, end, _ in intervals)
    assert (0.1, 0.4, 'say "hi" you') in intervals  # ends where the next word begins


@pytest.mark.parametrize("found", [Labels((), {"a": 0.1}), Spans(())], ids=["labels", "spans"])
def test_a_textgrid_without_labels_has_an_empty_tier(tmp_path, found):
    path = saved(tmp_path, "TextGrid", found=found)
    opened = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
    assert [tuple(entry) for entry in opened.getTier("labels").entries] == [(0, 10, "")]


@pytest.mark.parametrize(("record", "got"), [({"id": "a", "sentence": "b"}, "id, sentence"), ({}, "an empty one")])
def test_a_record_of_no_output_is_refused(record, got):
    with pytest.raises(ValueError, match=f"one of text, label, labels, spans, values, embedding, got {got}"):
        output_of_record(record)


words = st.builds(
    lambda text, start, length: Word(text, round(start, 3), round(start + length, 3), 0.5),
    st.text(min_size=0, max_size=8),
    st.floats(0, 5),
    st.sampled_from([0.0, 0.001, 0.3]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(words, max_size=12))
def test_a_textgrid_is_read_as_it_was_written(found):
    found = tuple(sorted(found, key=lambda word: word.start))
    annotation = Annotation(id="a", path=Path("a"), duration=5.5, text="", tiers={"words": found, "phones": found})
    tiers = textgrid_of(FORMATS["textgrid"].render(annotation))
    assert list(tiers) == ["words", "phones"]
    printed = ["".join(c for c in " ".join(word.word.split()) if c.isprintable() or c == " ") for word in found]
    texts = ["".join(c for c in text if c.isprintable() or c == " ") for *_, text in tiers["words"]]
    assert [text for text in texts if text.strip()] == [text for text in printed if text.strip()]
    times = [(start, end) for start, end, _ in tiers["words"]]
    assert times[0][0] == 0
    assert all(start < end for start, end in times)
    assert all(a[1] == b[0] for a, b in pairwise(times))


def textgrid_of(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.TextGrid"
        path.write_bytes(text.encode(errors="replace"))
        return read_textgrid(path)


def test_an_eaf_has_the_words_and_the_file(tmp_path):
    read = Elan.Eaf(str(saved(tmp_path, "eaf")))
    annotations = sorted(read.get_annotation_data_for_tier("words"))
    assert [text for *_, text in annotations] == SAID
    assert annotations[0][:2] == (100, 400)
    assert all(end > start for start, end, _ in annotations)
    assert read.media_descriptors[0]["RELATIVE_MEDIA_URL"] == "talk 1.flac"
    assert read.get_parameters_for_tier("words")["PARTICIPANT"] == "Ann B"


def test_a_file_does_not_change_with_the_day(monkeypatch):
    first = rendered("eaf")
    monkeypatch.setattr("time.strftime", lambda *_: "2001-01-01T00:00:00{:0=+3d}:{:0=2d}")
    assert rendered("eaf") == first


def test_a_ctm_has_six_fields_a_line_whatever_the_names_are():
    lines = [line.split(" ") for line in rendered("ctm").splitlines()]
    assert [len(line) for line in lines] == [6] * 5
    assert lines[0] == ["x_y/talk_1", "1", "0.100", "0.400", 'say_"hi"_you', "0.9"]
    assert [line[3] for line in lines][2] == "0.000"


@pytest.mark.parametrize(
    ("of_row", "of_run", "written"),
    [(None, "mean", "1"), (None, "left", "1"), (None, "right", "2"), ("right", "left", "2"), ("3", "mean", "4")],
)
def test_nists_formats_name_the_channel_and_count_from_one(of_row, of_run, written):
    row = Row("a.wav", Path("a.wav"), channel=of_row)
    label = Label("yes", 0.9, {"yes": 0.9})
    for kind, found, place in (("ctm", TRANSCRIPT, 1), ("rttm", TRANSCRIPT, 2), ("rttm", label, 2)):
        rendered = find_formats([kind])[0].render(annotation_of(row, 10.0, found, of_run))
        assert {line.split()[place] for line in rendered.splitlines()} == {written}


def test_an_rttm_has_lexemes_for_words_and_speakers_for_labels(tmp_path):
    assert rendered("rttm").splitlines()[0] == 'LEXEME x_y/talk_1 1 0.100 0.400 say_"hi"_you lex Ann_B 0.9 <NA>'
    label = Label("go up", 0.9, {"go up": 0.9})
    assert rendered("rttm", label) == "SPEAKER x_y/talk_1 1 0.000 10.000 <NA> <NA> go_up 0.9 <NA>\n"
    path = saved(tmp_path, "rttm", found=label, row=Row("talk.flac", Path("talk.flac")))
    [span] = read_segments(path, ["talk.flac"])["talk.flac"]
    assert (span.start, span.end, span.label) == (0, 10, "go_up")


def test_extract_reads_the_words_of_a_tsv_as_segments(tmp_path):
    row = Row("talk 1.flac", Path("talk 1.flac"))
    longer = Transcript("a b", 1.0, (Word('a"', 0.1, 0.5, 1.0), Word("b", 0.5, 0.75, 1.0)))
    path = saved(tmp_path, "tsv", found=longer, row=row)
    spans = read_segments(path, ["talk 1.flac"])["talk 1.flac"]
    assert [(span.start, span.end) for span in spans] == [(0.1, 0.5), (0.5, 0.75)]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["label"] for row in rows] == ['a"', "b"]


def test_extract_reads_the_words_of_a_textgrid_as_segments(tmp_path):
    path = saved(tmp_path, "textgrid", row=Row("talk.flac", Path("talk.flac")))
    assert [span.label for span in read_segments(path, ["talk.flac"])["talk.flac"]] == SAID


@pytest.mark.parametrize("name", FORMATS)
def test_a_word_that_ends_before_it_begins_has_an_interval(name, tmp_path):
    odd = Transcript("a b", 0.9, (Word("a", 5.26, 2.6, 0.9), Word("b", 5.3, 5.5, 0.9)))
    path = saved(tmp_path, name, found=odd)
    if name == "textgrid":
        assert (5.26, 5.261, "a") in read_textgrid(path)["words"]
    assert "-" not in path.read_text().replace("-->", "") or name == "eaf"


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_transcript_has_a_valid_file(name, tmp_path):
    path = saved(tmp_path, name, found=Transcript("", 0.9, ()))
    text = path.read_text()
    if name == "textgrid":
        assert read_textgrid(path) == {"words": [(0.0, 10.0, "")]}
        assert textgrid.openTextgrid(str(path), includeEmptyIntervals=True).tierNames == ("words",)
    elif name == "eaf":
        assert Elan.Eaf(str(path)).get_annotation_data_for_tier("words") == []
    else:
        assert text == {"txt": "\n", "vtt": "WEBVTT\n", "tsv": "id\tstart\tend\tlabel\tscore\n"}.get(name, "")


@pytest.mark.parametrize("name", FORMATS)
def test_a_label_has_a_file_in_every_format(name, tmp_path):
    assert "down" in saved(tmp_path, name, found=Label("down", 0.9, {"down": 0.9})).read_text()


@pytest.mark.parametrize("name", ["TextGrid", "textgrid", "TEXTGRID", ".TextGrid"])
def test_the_case_of_a_format_does_not_matter(name):
    assert find_formats([name]) == (FORMATS["textgrid"],)


def test_a_format_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pympi", None)
    monkeypatch.setattr("w2v_attn.transcription.formats.annotation_formats.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'w2v_attn\[elan\]'"):
        find_formats(["eaf"])
