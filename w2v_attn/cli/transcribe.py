"""`w2v-attn transcribe`: turn recordings into text, labels or values; see conf/transcribe.yaml."""

import sys
from functools import partial
from typing import Any

from w2v_attn.cli import console, corpus_run, values
from w2v_attn.cli.demo import warn_of_demo
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.patching.replace import backend_in_use
from w2v_attn.transcription.ctc_recognizer import CtcRecognizer
from w2v_attn.transcription.load_recognizer import load_recognizer, notes_on
from w2v_attn.transcription.outputs import Embedding, Recognition
from w2v_attn.transcription.transcription_run import TRANSCRIPTS, transcribe_corpus

# Lines of a recording, such as values or spans, that the table shows.
MAX_LINES = 6


def run(config: Any) -> int:
    """Transcribe recordings, show progress, the first transcripts and a summary, and return the exit code."""
    output, formats = values.folder(config, "output"), values.list_of(config, "formats")
    limits = values.limits(config)
    corpus = list_recordings(values.sources(config, "audio"), root=config.root, columns=values.columns(config))
    warn_of_demo(str(config.model.checkpoint), corpus.rows)
    recognizer = load_recognizer(values.text(config, "model.checkpoint"), **values.recognizer_options(config))
    for note in notes_on(recognizer):
        print(f"note: {note}", file=sys.stderr)
    shown: list[tuple[str, str, str]] = []

    def take(row: Row, found: Recognition) -> None:
        if len(shown) < corpus_run.MAX_TABLE_ROWS:
            shown.append((row.id, _short(found), "" if found.score is None else f"{found.score:.2f}"))

    about = corpus_run.describe_request(config)
    start = partial(transcribe_corpus, recognizer, corpus.rows, output, formats=formats, about=about, **limits)
    finished = corpus_run.watch(corpus, start, take)
    written = finished.stats.written
    more = f" (the first {len(shown)} of {written})" if written > len(shown) else ""
    column = "text" if isinstance(recognizer, CtcRecognizer) else "output"
    console.show(f"Transcripts{more}", shown, header=("recording", column, "score"))
    rows = [("attention", f"{backend_in_use(recognizer.model)} on {recognizer.device}")]
    rows += corpus_run.describe_long_form(recognizer.long_form)
    return corpus_run.conclude("Transcribed", corpus, finished, output / TRANSCRIPTS, rows)


def _short(found: Recognition) -> str:
    """Return what fits into a cell of the table: lines one after the other, and of long ones the beginning."""
    if isinstance(found, Embedding):
        return f"an embedding of {len(found.embedding)} values"
    lines = found.as_text().replace("\t", " ").splitlines()
    more = f"; … and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
    return "; ".join(lines[:MAX_LINES]) + more
