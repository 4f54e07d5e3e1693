"""The transcription run: rows in, `transcripts.jsonl`, plain text and subtitles out."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import Outcome, write_error
from w2v_attn.runs.pipeline import ONE_BY_ONE, Batch, run_corpus
from w2v_attn.transcription.outputs import Label, Transcript, Word
from w2v_attn.transcription.recognizer import Recognizer
from w2v_attn.whole_files import write_whole

TRANSCRIPTS = "transcripts.jsonl"
# Limits of a readable subtitle: two short lines, some seconds on the screen, no longer pause within it.
MAX_CUE_CHARACTERS, MAX_CUE_SECONDS, MAX_CUE_PAUSE = 70, 6.0, 1.0


def transcribe_corpus(
    recognizer: Recognizer,
    rows: Sequence[Row],
    output: Path,
    *,
    formats: Sequence[str],
    max_duration: float,
    interrupted: Callable[[], bool] = lambda: False,
    audio_decoder: AudioDecoderOptions = INLINE,
) -> Iterator[Outcome[Transcript | Label]]:
    """Transcribe every row into files in `output` and yield what became of it.

    Args:
        recognizer: The model with its head.
        rows: The recordings.
        output: The folder of the transcripts.
        formats: Files to write for each recording beside `transcripts.jsonl`, of txt, srt, vtt.
        max_duration: Seconds; a longer recording fails.
        interrupted: Returns whether the run shall end after the current recording.
        audio_decoder: Where recordings are decoded, and within which limits.

    Raises:
        ValueError: an unknown format, before anything is written.
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats must be of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    reading = {"max_duration": max_duration, "interrupted": interrupted, "audio_decoder": audio_decoder}
    return _transcribe(recognizer, rows, output, tuple(formats), budget=ONE_BY_ONE, **reading)


def _transcribe(
    recognizer: Recognizer, rows: Sequence[Row], output: Path, formats: tuple[str, ...], **options: Any
) -> Iterator[Outcome[Transcript | Label]]:
    def process(batch: Batch) -> list[Transcript | Label]:
        return [recognizer.recognize(recording.waveform) for _, recording in batch]

    with TranscriptWriter(output, formats) as writer:

        def finish(row: Row, recording: Recording, found: Transcript | Label) -> Transcript | Label:
            try:
                writer.write(row, found)
            except OSError as error:
                raise write_error(output / row.id, error) from error
            return found

        yield from run_corpus(rows, output, recognizer, process, finish, **options)


class TranscriptWriter:
    """The writer of `transcripts.jsonl` and of the text and subtitle files of each recording.

    The lines are written to a file of another name, which replaces `transcripts.jsonl` when the writer is closed: until
    then the file of the previous run stays.

    Args:
        output: The folder.
        formats: Files to write for each recording, of txt, srt, vtt. Labels have no subtitles.
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
        """Write the result of one recording.

        Raises:
            OSError: the output cannot be written.
        """
        if self._lines is None:
            self._output.mkdir(parents=True, exist_ok=True)
            self._lines = self._unfinished.open("w", encoding="utf-8", errors="replace")
        record = {"id": row.id, "path": os.fspath(row.path), **found.as_record()}
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._lines.flush()
        for name in self._formats:
            if isinstance(found, Transcript):
                self._write_file(row, name, FORMATS[name](found))
            elif name == "txt":
                self._write_file(row, name, f"{found.label}\n")

    def _write_file(self, row: Row, extension: str, text: str) -> None:
        write_whole(self._output / f"{row.id}.{extension}", text.encode())


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles."""
    cues = [
        f"{number}\n{_clock(cue[0].start, ',')} --> {_clock(cue[-1].end, ',')}\n{_line(cue)}\n"
        for number, cue in enumerate(_cues(transcript.words), 1)
    ]
    return "\n".join(cues)


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles."""
    cues = [
        f"{_clock(cue[0].start, '.')} --> {_clock(cue[-1].end, '.')}\n{_line(cue)}\n" for cue in _cues(transcript.words)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def as_txt(transcript: Transcript) -> str:
    """Return the text on one line."""
    return f"{transcript.text}\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": as_txt, "srt": as_srt, "vtt": as_vtt}


def _cues(words: tuple[Word, ...]) -> Iterator[list[Word]]:
    """Yield the words of each subtitle, which ends at a length, at a duration, or at a pause."""
    cue: list[Word] = []
    for word in words:
        if cue and (
            len(_line(cue)) + 1 + len(word.word) > MAX_CUE_CHARACTERS
            or word.end - cue[0].start > MAX_CUE_SECONDS
            or word.start - cue[-1].end > MAX_CUE_PAUSE
        ):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _line(words: list[Word]) -> str:
    return " ".join(word.word for word in words)


def _clock(seconds: float, point: str) -> str:
    """Return hours, minutes, seconds and milliseconds: 00:01:02,345."""
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
