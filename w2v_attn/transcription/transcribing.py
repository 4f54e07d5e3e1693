"""The transcription run: rows -> waveforms -> transcripts -> files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from w2v_attn.audio.reading import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs import Outcome, run, write_failed
from w2v_attn.transcription.files import FORMATS, TranscriptWriter
from w2v_attn.transcription.recognizer import Label, Recognizer, Transcript


def transcribe_corpus(
    recognizer: Recognizer, rows: Sequence[Row], output: Path, *, formats: Sequence[str], max_duration: float
) -> Iterator[Outcome[Transcript | Label]]:
    """Transcribes every row into files in `output`; see `runs.run` for outcomes and failures.

    formats: what to write beside transcripts.jsonl, of txt, srt, vtt.

    Raises:
        ValueError: an unknown format, before anything is written.
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"formats must be of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    return _transcribe(recognizer, rows, output, tuple(formats), max_duration)


def _transcribe(
    recognizer: Recognizer, rows: Sequence[Row], output: Path, formats: tuple[str, ...], max_duration: float
) -> Iterator[Outcome[Transcript | Label]]:
    with TranscriptWriter(output, formats) as writer:

        def process(row: Row, recording: Recording) -> Transcript | Label:
            found = recognizer.recognize(recording.waveform)
            try:
                writer.write(row, found)
            except OSError as error:
                raise write_failed(output / row.id, error) from error
            return found

        yield from run(rows, output, process, sample_rate=recognizer.sample_rate, max_duration=max_duration)
