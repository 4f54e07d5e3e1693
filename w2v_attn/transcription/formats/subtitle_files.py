"""Subtitles as SubRip (.srt) and WebVTT (.vtt).

Source: W3C, "WebVTT: The Web Video Text Tracks Format". SubRip has no specification: players read some tags of HTML.
"""

import re
from collections.abc import Callable, Iterator

from w2v_attn.transcription.formats.annotation import Annotation, one_line
from w2v_attn.transcription.subtitles import cues_of

_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def as_srt(annotation: Annotation) -> str:
    """Return SubRip subtitles, in UTF-8.

    SubRip has no escapes. A space is put into what a player would read as a tag or as the line of times.
    """
    cues = _cues(annotation, ",", lambda line: _TAG.sub("< ", line.replace("-->", "-- >")))
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(cues, 1))


def as_vtt(annotation: Annotation) -> str:
    """Return WebVTT subtitles."""
    escaped = _cues(annotation, ".", lambda line: line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return "\n".join(["WEBVTT\n", *escaped])


def _cues(annotation: Annotation, point: str, escape: Callable[[str], str]) -> Iterator[str]:
    """Yield the times and the lines of each cue."""
    for cue in cues_of(annotation.words):
        lines = "\n".join(escape(one_line(line)) for line in cue.lines)
        yield f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}\n{lines}\n"


def _clock(seconds: float, point: str) -> str:
    """Return hours, minutes, seconds and milliseconds: 00:01:02,345."""
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
