"""The transcription run: rows -> waveforms -> transcripts -> files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.outcomes import Outcome, write_error
from w2v_attn.runs.pipeline import ONE_BY_ONE, Batch, run_corpus
from w2v_attn.transcription.files import FORMATS, TranscriptWriter
from w2v_attn.transcription.recognizer import Label, Recognizer, Transcript


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
    """Transcribes every row into files in `output`; see `runs.run` for outcomes, failures and interruption.

    formats: what to write beside transcripts.jsonl, of txt, srt, vtt.
    audio_decoder: where recordings are decoded, and what is accepted.

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
