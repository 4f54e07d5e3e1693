"""Cues keep the limits of readable subtitles, and together they are the text."""

import html
import re
from pathlib import Path

import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import iter_graphemes

from w2v_attn.corpus.rows import Row
from w2v_attn.transcription.formats.subtitle_files import as_srt, as_vtt
from w2v_attn.transcription.formats.tables import as_txt
from w2v_attn.transcription.outputs import Transcript, Word
from w2v_attn.transcription.subtitles import (
    MAX_CUE_SECONDS,
    MAX_LINE_WIDTH,
    MIN_CUE_SECONDS,
    cues_of,
    text_width,
)
from w2v_attn.transcription.transcription_run import annotation_of

# Latin with and without marks that combine; Thai, whose vowels and tones combine; Chinese, which is wide; Arabic; emoji
# of one and of several code points; markup; quotes.
CHARACTERS = "abcé'\u0301-. ,?的一是不了。，กิ่น้ำที่อยู่ابت👍👩\u200d👧🇩🇪<>&\"\\"
TEXTS = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=60) | st.text(min_size=1, max_size=9) | st.just("-->")


@st.composite
def transcripts(draw):
    """Words with times in order, with pauses, overlaps and words of length 0; separated by spaces or by nothing."""
    separator = draw(st.sampled_from([" ", ""]))
    words, now = [], draw(st.floats(0, 5))
    for text in draw(st.lists(TEXTS, max_size=40)):
        length = draw(st.sampled_from([0, 0, 0.02, 0.1, 0.3, 0.3, 0.5, 9.5]))
        words.append(Word(text, round(now, 3), round(now + length, 3), 1.0, separator if words else ""))
        now = max(0.0, now + length + draw(st.sampled_from([-0.2, 0, 0, 0.02, 0.1, 0.3, 0.8, 2.5])))
    return Transcript(separator.join(word.word for word in words), 1.0, tuple(words))


def bare(text):
    return "".join(text.split())


@settings(max_examples=300, deadline=None)
@given(transcripts())
def test_cues_keep_every_limit_and_together_are_the_text(transcript):
    cues = cues_of(transcript.words)
    assert bare("".join("".join(cue.lines) for cue in cues)) == bare(transcript.text)
    before = 0.0
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2
        assert all(line.strip() == line and line for line in cue.lines)
        assert all(text_width(line) <= MAX_LINE_WIDTH for line in cue.lines)
        assert cue.start >= before
        assert MIN_CUE_SECONDS - 1e-9 <= cue.end - cue.start <= MAX_CUE_SECONDS + 1e-9
        before = cue.end


@settings(max_examples=300, deadline=None)
@given(transcripts())
def test_no_line_ends_inside_a_grapheme_cluster(transcript):
    """Where nothing separates the words, a cluster may even span several of them."""
    ends, place = set(), 0
    for part in transcript.text.split():
        for cluster in iter_graphemes(part):
            place += len(cluster)
            ends.add(place)
    place = 0
    for cue in cues_of(transcript.words):
        for line in cue.lines:
            place += len(bare(line))
            assert place in ends


@settings(max_examples=200, deadline=None)
@given(transcripts())
def test_txt_srt_and_vtt_hold_the_text_of_the_transcript(transcript):
    annotation = annotation_of(Row("a.wav", Path("a.wav")), 100.0, transcript)
    said = bare(printable(transcript.text))
    assert bare(printable(as_txt(annotation))) == said
    subtitles = list(srt.parse(as_srt(annotation)))
    assert [cue.index for cue in subtitles] == list(range(1, len(subtitles) + 1))
    assert bare("".join(cue.content for cue in subtitles)) == said
    captions = webvtt.from_string(as_vtt(annotation)).captions
    assert bare(html.unescape("".join(caption.raw_text for caption in captions))) == said
    assert len(captions) == len(subtitles)


def printable(text):
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", text)


def timed(texts, *, each=0.3, gap=0.1, joiner=" "):
    return [Word(text, n * (each + gap), n * (each + gap) + each, 1.0, joiner) for n, text in enumerate(texts)]


def test_a_cue_ends_at_a_pause_rather_than_where_the_line_is_full():
    words = timed("we shall fight on the beaches we shall fight on the landing grounds in the fields".split())
    later = [Word(w.word, w.start + 0.7 * (n > 5), w.end + 0.7 * (n > 5), 1.0) for n, w in enumerate(words)]
    assert [" ".join(cue.lines) for cue in cues_of(later)] == [
        "we shall fight on the beaches",
        "we shall fight on the landing grounds in the fields",
    ]


def test_a_cue_ends_at_the_end_of_a_sentence():
    words = timed("It was late. Nobody came to the door that night and the lamp went out slowly.".split(), each=0.4)
    assert " ".join(cues_of(words)[0].lines) == "It was late."


def test_the_two_lines_of_a_cue_are_about_as_long_as_each_other():
    [cue] = cues_of(timed("this sentence is longer than one line can be so it has two".split(), each=0.2))
    first, second = map(text_width, cue.lines)
    assert abs(first - second) <= len("sentence")


def test_wide_characters_take_two_columns():
    cues = cues_of(timed("的" * 60, each=0.1, gap=0.0, joiner=""))
    assert [len(line) for cue in cues for line in cue.lines] == [15] * 4


def test_a_line_neither_begins_with_a_closing_mark_nor_ends_with_an_opening_one():
    words = timed("他说「不是我在这里的时候有人来过吗」。" * 6, each=0.1, gap=0.05, joiner="")
    for cue in cues_of(words):
        for line in cue.lines:
            assert line[0] not in "」。"
            assert line[-1] != "「"


def test_thai_marks_stay_with_their_letter():
    text = "ที่นี่มีน้ำผึ้งที่ดีที่สุดในโลกและผู้คนที่นี่ก็เป็นมิตรมากๆ" * 3
    lines = [line for cue in cues_of(timed(text, each=0.05, gap=0.0, joiner="")) for line in cue.lines]
    assert len(lines) > 1
    assert [cluster for line in lines for cluster in iter_graphemes(line)] == list(iter_graphemes(text))


def test_a_word_that_is_wider_than_a_line_is_broken_and_its_time_shared():
    cues = cues_of([Word("a" * 100, 0.0, 10.0, 1.0)])
    assert [line for cue in cues for line in cue.lines] == ["a" * 42, "a" * 42, "a" * 16]
    assert [(cue.start, cue.end) for cue in cues] == [(0.0, 4.2), (4.2, 10.0)]


def test_a_word_that_is_spoken_for_too_long_is_shown_for_seven_seconds():
    [cue] = cues_of([Word("well", 1.0, 20.0, 1.0)])
    assert (cue.start, cue.end) == (1.0, 8.0)


@pytest.mark.parametrize("text", ["<i>", "a<b>c", "</v>", "<unk>"])
def test_players_of_srt_find_no_tag_in_the_text(text):
    found = as_srt(annotation_of(Row("a", Path("a")), 1.0, Transcript(text, 1.0, (Word(text, 0.0, 0.5, 1.0),))))
    assert not re.search(r"</?[a-z]", found)
