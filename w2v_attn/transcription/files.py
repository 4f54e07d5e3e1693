"""Transcripts as files: one JSON line a recording, plain text, and subtitles."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.transcription.recognizer import Label, Transcript, Word

TRANSCRIPTS = "transcripts.jsonl"
# A subtitle that people can read: two short lines at most, on the screen for some seconds at most.
CUE_CHARACTERS, CUE_SECONDS, CUE_PAUSE = 70, 6.0, 1.0


class TranscriptWriter:
    """Writes `transcripts.jsonl`, and beside it what `formats` names for each recording.

    formats: of `txt`, `srt`, `vtt`. Subtitles need word times: a label gets none.

    The lines stand in a file of another name until the writer is closed, so that the one of the run before is there
    until it is replaced as a whole.
    """

    def __init__(self, output: Path, formats: tuple[str, ...] = ()):
        self._output, self._formats = output, formats
        self._unfinished = output / f".{TRANSCRIPTS}.unfinished"
        self._lines: TextIO | None = None

    def __enter__(self) -> "TranscriptWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is None:
            return
        try:
            with self._lines:
                self._lines.flush()
                os.fsync(self._lines.fileno())
            os.replace(self._unfinished, self._output / TRANSCRIPTS)
        except OSError as error:
            raise RunError(f"cannot write {self._output / TRANSCRIPTS}: {error.strerror}") from error

    def write(self, row: Row, found: Transcript | Label) -> None:
        """One recording. Raises OSError where the output cannot be written."""
        if self._lines is None:
            self._output.mkdir(parents=True, exist_ok=True)
            self._lines = self._unfinished.open("w", encoding="utf-8", errors="replace")
        record = {"id": row.id, "path": os.fspath(row.path), **found.as_record()}
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._lines.flush()
        for name in self._formats:
            if isinstance(found, Transcript):
                self._write_whole(row, name, FORMATS[name](found))
            elif name == "txt":
                self._write_whole(row, name, f"{found.label}\n")

    def _write_whole(self, row: Row, extension: str, text: str) -> None:
        path = self._output / f"{row.id}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.unfinished")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def as_srt(transcript: Transcript) -> str:
    """SubRip subtitles."""
    cues = [
        f"{number}\n{_clock(cue[0].start, ',')} --> {_clock(cue[-1].end, ',')}\n{_line(cue)}\n"
        for number, cue in enumerate(_cues(transcript.words), 1)
    ]
    return "\n".join(cues)


def as_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles."""
    cues = [
        f"{_clock(cue[0].start, '.')} --> {_clock(cue[-1].end, '.')}\n{_line(cue)}\n" for cue in _cues(transcript.words)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_txt(transcript: Transcript) -> str:
    """The text on one line."""
    return f"{transcript.text}\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt}


def _cues(words: tuple[Word, ...]) -> Iterator[list[Word]]:
    """Words that are shown together: until they fill the line, take too long, or a pause comes."""
    cue: list[Word] = []
    for word in words:
        if cue and (
            len(_line(cue)) + 1 + len(word.word) > CUE_CHARACTERS
            or word.end - cue[0].start > CUE_SECONDS
            or word.start - cue[-1].end > CUE_PAUSE
        ):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _line(words: list[Word]) -> str:
    return " ".join(word.word for word in words)


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds: 00:01:02,345."""
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
