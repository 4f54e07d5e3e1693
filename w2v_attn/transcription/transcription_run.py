"""The transcription run: rows in, `transcripts.jsonl` and files for each recording out; it resumes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.audio.channels import MEAN, channel_fingerprint, channel_number
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.patching.replace import backend_in_use
from w2v_attn.run_error import RunError
from w2v_attn.runs.outcomes import CachedResult, Outcome, cannot_write, write_error
from w2v_attn.runs.output_folder import FolderIdentity, RunFolder, RunSpec, acquire, check_case_collisions
from w2v_attn.runs.pipeline import ONE_BY_ONE, Batch, process_rows
from w2v_attn.runs.rank import blocks_of
from w2v_attn.runs.record import made_with
from w2v_attn.runs.recorded_run import recorded_run
from w2v_attn.runs.result_log import ResultLog, cached_result
from w2v_attn.transcription.formats.annotation import Annotation
from w2v_attn.transcription.formats.annotation_formats import AnnotationFormat, find_formats
from w2v_attn.transcription.outputs import Label, Labels, Recognition, Spans, Transcript, Word, output_of_record
from w2v_attn.transcription.recognizer import Recognizer
from w2v_attn.whole_files import remove_leftovers, write_whole

Result = TypeVar("Result")

TRANSCRIPTS = "transcripts.jsonl"
FORMAT = "w2v_attn.transcripts/1"


def transcribe_corpus(
    recognizer: Recognizer,
    rows: Sequence[Row],
    output: Path,
    *,
    formats: Sequence[str],
    max_duration: float,
    interrupted: Callable[[], bool] = lambda: False,
    audio_decoder: AudioDecoderOptions = INLINE,
    about: Mapping[str, object] | None = None,
) -> Iterator[Outcome[Recognition]]:
    """Transcribe every row into files in `output` and yield the outcome of each.

    Transcripts of an earlier run are kept and not computed again if they are of this configuration and of the current
    source. However often a run is killed and resumed, it ends with the same files. Files for each recording are
    written where they are missing or differ. Rows that failed are tried again.

    Args:
        recognizer: The model with its head.
        rows: The recordings.
        output: The folder of the transcripts.
        formats: Files to write for each recording beside `transcripts.jsonl`; see `FORMATS` of `annotation_formats`.
        max_duration: Seconds; a longer recording fails.
        interrupted: Returns whether the run shall end after the current recording.
        audio_decoder: Where recordings are decoded, and within which limits.
        about: Further entries of `run.json`.

    Raises:
        ValueError: an unknown format, before anything is written; or, at the start: the output is in use by another
            run, belongs to another configuration, or cannot be written.
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    found = find_formats(formats)
    if not recognizer.has_times and (other := [kind.extension for kind in found if kind.extension != "txt"]):
        raise ValueError(
            f"formats={','.join(other)} hold words or labels with their times, and this checkpoint gives numbers: "
            "use formats=[txt]"
        )
    return _transcribe(recognizer, rows, output, found, max_duration, interrupted, audio_decoder, about or {})


def run_spec(
    recognizer: Recognizer,
    rows: Sequence[Row],
    *,
    fingerprint: Mapping[str, str],
    about: Mapping[str, object],
    prepare: Callable[[], None],
) -> RunSpec:
    """Return what a run of a recogniser needs to acquire its output folder."""
    device, backend = str(recognizer.device), backend_in_use(recognizer.model)
    return RunSpec(
        blocks=blocks_of(rows),
        fingerprint=fingerprint,
        made_with={**made_with(), "device": device, "attention": backend},
        batch_frames=ONE_BY_ONE,
        about=about,
        prepare=prepare,
    )


def recognition_run(
    folder: RunFolder,
    rows: Sequence[Row],
    recognizer: Recognizer,
    process: Callable[[Batch], list[Result]],
    finish: Callable[[Row, Recording, Result], Result],
    find: Callable[[Row], CachedResult[Result] | None],
    *,
    max_duration: float,
    interrupted: Callable[[], bool],
    audio_decoder: AudioDecoderOptions,
) -> Iterator[Outcome[Result]]:
    """Yield the outcomes of rows that go through a recogniser one at a time; see `process_rows` and `recorded_run`."""
    return recorded_run(
        folder,
        rows,
        lambda: process_rows(
            rows,
            recognizer,
            process,
            finish,
            max_duration=max_duration,
            budget=ONE_BY_ONE,
            find_cached=find,
            interrupted=interrupted,
            audio_decoder=audio_decoder,
        ),
    )


def _transcribe(
    recognizer: Recognizer,
    rows: Sequence[Row],
    output: Path,
    formats: tuple[AnnotationFormat, ...],
    max_duration: float,
    interrupted: Callable[[], bool],
    audio_decoder: AudioDecoderOptions,
    about: Mapping[str, object],
) -> Iterator[Outcome[Recognition]]:
    fingerprint = {"format": FORMAT, **recognizer.fingerprint(), **channel_fingerprint(audio_decoder.channel)}
    files = AnnotationFiles(output, formats, audio_decoder.channel)
    spec = run_spec(
        recognizer, rows, fingerprint=fingerprint, about=about, prepare=lambda: files.prepare([row.id for row in rows])
    )

    def process(batch: Batch) -> list[Recognition]:
        for row, recording in batch:
            recognizer.announce(row.id, recording.waveform)
        # As it is read from its line when the run is resumed, so that both give the same files.
        return [output_of_record(recognizer.recognize(recording.waveform).as_record()) for _, recording in batch]

    with acquire(output, spec) as folder, ResultLog(output, TRANSCRIPTS, fingerprint) as log:
        check_there = FolderIdentity(output).check

        def find(row: Row) -> CachedResult[Recognition] | None:
            if (record := log.find(row)) is None:
                return None
            found = output_of_record(record)
            check_there()
            try:
                files.write(row, record["duration"], found)
            except OSError as error:
                if isinstance(failure := write_error(output / row.id, error), RunError):
                    raise failure from error
                return None  # the row fails when it is written again
            return cached_result(record, found, recognizer.sample_rate)

        def finish(row: Row, recording: Recording, found: Recognition) -> Recognition:
            check_there()
            try:
                files.write(row, recording.duration, found)
                log.add(row, recording, found.as_record())
            except OSError as error:
                raise write_error(output / row.id, error) from error
            return found

        try:
            yield from recognition_run(
                *(folder, rows, recognizer, process, finish, find),
                max_duration=max_duration,
                interrupted=interrupted,
                audio_decoder=audio_decoder,
            )
        finally:
            try:
                log.finish(rows)
            except OSError as error:
                raise cannot_write(output / TRANSCRIPTS, error) from error


class AnnotationFiles:
    """The files about each recording, beside the log of all transcripts.

    Args:
        output: The folder.
        formats: What is written for each recording.
        channel: The channel of recordings whose row names none.
    """

    def __init__(self, output: Path, formats: tuple[AnnotationFormat, ...], channel: str | int = MEAN):
        self._output, self._formats, self._channel = output, formats, channel

    def prepare(self, ids: Sequence[str]) -> None:
        """Remove what killed runs left behind. Nobody may be writing meanwhile.

        Raises:
            ValueError: two ids differ in case only, and the disk does not distinguish them.
            OSError, RunError: the folder cannot be written.
        """
        folders = {self._output}
        if self._formats:
            check_case_collisions(self._output, ids)
            folders |= {(self._output / id).parent for id in ids}
        remove_leftovers(folders)

    def write(self, row: Row, duration: float, found: Recognition) -> None:
        """Write the files of a recording, except those that are there already. duration: in seconds. Raises OSError."""
        annotation = annotation_of(row, duration, found, self._channel) if self._formats else None
        for kind in self._formats:
            assert annotation is not None
            path = self._output / f"{row.id}.{kind.extension}"
            content = kind.render(annotation).encode(errors="replace")
            if _read(path) != content:
                write_whole(path, content)


def annotation_of(row: Row, duration: float, found: Recognition, channel: str | int = MEAN) -> Annotation:
    """Return what files about a recording hold.

    Args:
        row: The row of the recording.
        duration: Seconds.
        found: What was recognised.
        channel: The channel that was read if the row names none.
    """
    tiers: dict[str, tuple[Word, ...]] = {}
    if isinstance(found, Transcript):
        tiers = {"words": found.words}
    elif isinstance(found, Label):
        tiers = {"labels": (Word(found.label, 0.0, duration, found.score),)}
    elif isinstance(found, Labels):  # a tier for each, since they overlap
        tiers = {name: (Word(name, 0.0, duration, found.scores[name]),) for name in found.labels}
    elif isinstance(found, Spans):
        for span in found.spans:
            word = Word(span.label, span.start, span.end, span.score)
            tiers[span.label] = (*tiers.get(span.label, ()), word)
    return Annotation(
        id=row.id,
        path=row.path,
        duration=duration,
        text=found.as_text(),
        tiers=tiers,
        speaker=row.speaker,
        channel=channel_number(channel if row.channel is None else row.channel),
        is_label=not isinstance(found, Transcript),
    )


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
