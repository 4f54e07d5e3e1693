"""Text and tables: .txt, .tsv, and CTM and RTTM of NIST.

Source: NIST, "The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan", appendix A (RTTM);
documentation of sclite (CTM).
"""

from collections.abc import Iterable, Sequence

from w2v_attn.transcription.formats.annotation import Annotation, field, name_of, one_line
from w2v_attn.transcription.outputs import Word


def as_txt(annotation: Annotation) -> str:
    """Return the text on one line."""
    return f"{annotation.text}\n"


def as_tsv(annotation: Annotation) -> str:
    """Return a table with a line for each word: id, start and end in seconds, label, score.

    `segments=` of `extract` reads it.
    """
    rows = (
        (one_line(annotation.id), _seconds(word.start), _seconds(word.end), one_line(word.word), f"{word.score:g}")
        for word in annotation.words
    )
    return _lines([("id", "start", "end", "label", "score"), *rows], "\t")


def as_ctm(annotation: Annotation) -> str:
    """Return CTM: recording, channel, start, duration, word, confidence."""
    channel = annotation.nist_channel
    rows = (
        (name_of(annotation.id), channel, *_onset(word), field(word.word), f"{word.score:g}")
        for word in _by_time(annotation.words)
    )
    return _lines(rows, " ")


def as_rttm(annotation: Annotation) -> str:
    """Return RTTM: lines SPEAKER for labels, and lines LEXEME for words."""
    name, speaker, channel = name_of(annotation.id), field(annotation.speaker or ""), annotation.nist_channel
    if annotation.is_label:
        rows = (
            ("SPEAKER", name, channel, *_onset(word), "<NA>", "<NA>", field(word.word), f"{word.score:g}", "<NA>")
            for word in annotation.words
        )
    else:
        rows = (
            ("LEXEME", name, channel, *_onset(word), field(word.word), "lex", speaker, f"{word.score:g}", "<NA>")
            for word in _by_time(annotation.words)
        )
    return _lines(rows, " ")


def _by_time(words: Sequence[Word]) -> list[Word]:
    return sorted(words, key=lambda word: word.start)


def _onset(word: Word) -> tuple[str, str]:
    """Return the start and the duration of a word."""
    return _seconds(word.start), _seconds(max(0.0, word.end - word.start))


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"


def _lines(rows: Iterable[Iterable[str]], delimiter: str) -> str:
    return "".join(f"{delimiter.join(row)}\n" for row in rows)
