"""`w2v-attn transcribe`: turn recordings into text or labels; see conf/transcribe.yaml."""

from functools import partial
from typing import Any

from w2v_attn.cli import console, corpus_run, values
from w2v_attn.cli.demo import warn_of_demo
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.patching.replace import backend_in_use
from w2v_attn.transcription.load_recognizer import load_recognizer
from w2v_attn.transcription.outputs import Label, Transcript
from w2v_attn.transcription.transcription_run import TRANSCRIPTS, transcribe_corpus


def run(config: Any) -> int:
    """Transcribe recordings, show progress, the first transcripts and a summary, and return the exit code."""
    output, formats = values.folder(config, "output"), values.list_of(config, "formats")
    limits = values.limits(config)
    corpus = list_recordings(values.sources(config, "audio"), root=config.root, columns=values.columns(config))
    warn_of_demo(str(config.model.checkpoint), corpus.rows)
    recognizer = load_recognizer(
        values.text(config, "model.checkpoint"),
        **values.model_options(config),
        decoder=values.decoder(config),
        long_form=values.long_form(config),
    )
    shown: list[tuple[str, str, str]] = []

    def take(row: Row, found: Transcript | Label) -> None:
        if len(shown) < corpus_run.MAX_TABLE_ROWS:
            text = found.text if isinstance(found, Transcript) else found.label
            shown.append((row.id, text, f"{found.score:.2f}"))

    about = corpus_run.describe_request(config)
    start = partial(transcribe_corpus, recognizer, corpus.rows, output, formats=formats, about=about, **limits)
    finished = corpus_run.watch(corpus, start, take)
    written = finished.stats.written
    more = f" (the first {len(shown)} of {written})" if written > len(shown) else ""
    console.show(f"Transcripts{more}", shown, header=("recording", "text", "score"))
    rows = [("attention", f"{backend_in_use(recognizer.model)} on {recognizer.device}")]
    rows += corpus_run.describe_long_form(recognizer.long_form)
    return corpus_run.conclude("Transcribed", corpus, finished, output / TRANSCRIPTS, rows)
