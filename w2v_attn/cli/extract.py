"""`w2v-attn extract`: compute features of audio; see conf/extract.yaml."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from w2v_attn.cli import console, corpus_run, values
from w2v_attn.cli.demo import warn_of_demo
from w2v_attn.cli.process import DONE, SOME_FAILED
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.layers import split_range
from w2v_attn.extraction.engines.open_extractor import open_extractor
from w2v_attn.extraction.estimate import DRY_RUN, Estimate, is_worth_estimating
from w2v_attn.extraction.extracting import extract_with
from w2v_attn.extraction.extractor import ExtractionJob, ExtractionTask, Extractor, InProcessExtractor
from w2v_attn.extraction.feature_spec import FeatureLocation
from w2v_attn.extraction.store import store_of
from w2v_attn.features.segments import read_segments
from w2v_attn.features.transform import FeatureTransform, describe_underflow
from w2v_attn.run_error import RunError
from w2v_attn.runs.rank import blocks_of, read_rank, rows_of
from w2v_attn.runs.record import read_record


def run(config: Any) -> int:
    """Extract features, show an estimate, progress and a summary, and return the exit code."""
    output, layers = values.folder(config, "output"), values.list_of(config, "layers")
    layout = values.text(config, "layout")
    rank = read_rank(values.integer_or_none(config, "rank"), values.integer_or_none(config, "world_size"))
    store = store_of(layout)
    corpus = list_recordings(values.sources(config, "audio"), root=config.root, columns=values.columns(config))
    warn_of_demo(str(config.model.checkpoint), corpus.rows)
    transform, listed = _transform(config, corpus.rows), len(corpus.rows)
    if transform.spans is not None:
        corpus = replace(corpus, rows=tuple(row for row in corpus.rows if row.id in transform.spans))
    mine = replace(corpus, rows=tuple(rows_of(rank.select(blocks_of(corpus.rows, store.rows_per_group)))))
    task = ExtractionTask(
        output=output, layers=tuple(layers), layout=layout, transform=transform, **values.limits(config)
    )
    model = values.model_options(config) | {"long_form": values.long_form(config)}
    job = ExtractionJob(checkpoint=values.text(config, "model.checkpoint"), model=model, task=task)
    workers = None if config.workers == "auto" else int(values.number(config, "workers", minimum=1))
    frames = channels = 0

    def take(_: Row, written: FeatureLocation) -> None:
        nonlocal frames, channels
        frames, channels = frames + written.frames, written.channels

    try:
        if config.dry_run:
            _dry_run(job, mine.rows)
            return DONE
        with open_extractor(job, engine=str(config.engine), workers=workers, rank=rank) as extractor:
            about = corpus_run.describe_request(config)
            estimate = _estimate(extractor, mine.rows)
            if estimate is not None:
                _show_estimate(estimate, layers)
                about["estimate"] = estimate.as_record()
            start = partial(extract_with, extractor, task, corpus.rows, rank=rank, about=about)
            finished = corpus_run.watch(mine, start, take, total=None if estimate is None else estimate.weight)
    except RunError as error:  # before the run began
        print(f"stopped: {error}", file=sys.stderr)
        return SOME_FAILED

    rows = _describe_extraction(extractor, task, f"{frames:,} × {channels} channels")
    dtype, stats = transform.output_dtype or extractor.description.dtype, finished.stats
    rows += _underflow(stats.underflowed, stats.underflowed_rows, dtype)
    if listed > len(corpus.rows):
        rows.append(("without segments", str(listed - len(corpus.rows))))
    if rank.is_alone:
        return corpus_run.conclude("Extracted", corpus, finished, output, rows)
    corpus_run.conclude(f"Extracted, rank {rank}", mine, finished, output, rows)
    return _conclude_ranks(output, finished.code, dtype)


def _transform(config: Any, rows: Sequence[Row]) -> FeatureTransform:
    """Return how features are computed from the layers of these rows."""
    pooling, segments = values.text(config, "pooling"), None
    if config.segments is not None and pooling != "none":
        segments = read_segments(values.path(config, "segments"), [row.id for row in rows])
    elif config.segments is not None:
        raise ValueError("segments need pooling, got pooling=none: give pooling=mean or pooling=statistics")
    dtype = values.text_or_none(config, "output_dtype")
    return FeatureTransform(
        output_dtype=dtype, layer_weights=values.layer_weights(config), pooling=pooling, spans=segments
    )


def _dry_run(job: ExtractionJob, rows: Sequence[Row]) -> None:
    """Show the size and the duration of the run; nothing is written."""
    worker = InProcessExtractor.load(job)
    worker.check_output()
    _show_estimate(worker.estimate(rows, trial=DRY_RUN), job.task.layers)


def _estimate(extractor: Extractor, rows: Sequence[Row]) -> Estimate | None:
    """Return an estimate of a long run; None for a short one, and where only other processes have an encoder."""
    if not isinstance(extractor, InProcessExtractor) or not is_worth_estimating(rows):
        return None
    return extractor.estimate(rows)


def _show_estimate(ahead: Estimate, layers: Sequence[str]) -> None:
    """Show an estimate, and a warning where the disk has too little space."""
    known = f"of {ahead.looked_at:,} headers" if ahead.looked_at < ahead.recordings else "of all headers"
    spread = f" ± {ahead.spread:.1%}" if ahead.spread >= 5e-4 else ""
    rows = [
        ("recordings", f"{ahead.recordings:,}"),
        ("audio", f"{console.span(ahead.audio)}{spread}, {known}"),
        ("to write", f"{ahead.files:,} files, {console.size(ahead.bytes)}: {', '.join(layers)} in {ahead.dtype}"),
        ("time", f"about {console.span(ahead.seconds)}"),
    ]
    if ahead.there:
        rows.insert(1, ("already there", f"about {ahead.there:,}"))
        rows.insert(3, ("to compute", console.span(ahead.missing)))
    if ahead.unusable:
        rows.insert(1, ("cannot be used", f"about {ahead.unusable:,}"))
    memory = "" if ahead.memory is None else f", of {console.size(ahead.memory)} of memory"
    rows.append(("weights", f"{console.size(ahead.weights)}{memory}"))
    if ahead.free is not None:
        rows.append(("free on the disk", console.size(ahead.free)))
    console.show("Estimated", rows)
    if ahead.free is not None and ahead.disk > ahead.free:
        print(
            f"warning: the features will take about {console.size(ahead.disk)}, and the disk of the output has "
            f"{console.size(ahead.free)} free. Fewer layers or half precision take less; a run that a full disk ends "
            "can be resumed when there is space again",
            file=sys.stderr,
        )
    if ahead.free_files is not None and ahead.files > ahead.free_files:
        print(
            f"warning: about {ahead.files:,} files will be written, and the disk of the output has room for "
            f"{ahead.free_files:,}. layout=shards writes few large files",
            file=sys.stderr,
        )


def _describe_extraction(extractor: Extractor, task: ExtractionTask, amount: str) -> list[tuple[str, str]]:
    """Return rows of the summary: what was extracted, how much, and with what."""
    described, transform = extractor.description, task.transform
    assert transform is not None
    numbers = any(end.lstrip("-").isdigit() for layer in task.layers for end in split_range(layer))
    layers = described.fingerprint["layers"].replace(",", ", ") if numbers else ", ".join(task.layers)
    rows = [
        ("layers", layers if transform.weighted_sum is None else f"weighted sum of {layers}"),
        (
            "frames" if transform.pooling == "none" else "vectors",
            f"{amount}, {transform.output_dtype or described.dtype}",
        ),
        ("attention", f"{described.backend} on {described.device}"),
    ]
    rows += corpus_run.describe_long_form(described.long_form)
    if described.unpacked_reason is not None:
        rows.append(("one by one", f"for {described.unpacked_reason}"))
    return rows


def _underflow(values: int, recordings: int, dtype: str) -> list[tuple[str, str]]:
    """Return a row of the summary where values became 0."""
    return [("underflow", describe_underflow(values, recordings, dtype))] if values else []


def _conclude_ranks(output: Path, code: int, dtype: str) -> int:
    """Show the summary of all ranks, in the rank that ends last, and return the exit code of this rank.

    Failed recordings set the exit code of the last rank only. Under torchrun they set none: it ends all processes when
    one exits with another code than 0, and a rank without work exits before others have begun.

    Args:
        output: The folder of the features.
        code: Exit code of this rank where it did not finish, else 0.
        dtype: Of the stored features.
    """
    record = read_record(output)
    if record is None or record["status"] == "running":
        return code
    counts, session = record["counts"], record["session"]
    speed = session["audio_seconds"] / max(session["seconds"], 1e-9)
    rows = [
        ("recordings", f"{counts['written'] + counts['kept']:,} of {counts['recordings']:,}"),
        *([("already there", counts["kept"])] if counts["kept"] else []),
        ("failed", counts["failed"]),
        ("audio", f"{session['audio_seconds']:.1f} s, {speed:.1f} × real time"),
        *([("not reached", counts["not_reached"])] if counts["not_reached"] else []),
        *_underflow(record["underflow"]["values"], record["underflow"]["recordings"], dtype),
        ("ranks", f"{record['ranks_begun']} of {record['world_size']}"),
        ("output", output),
    ]
    console.show("Extracted by all ranks", rows)
    if code or "TORCHELASTIC_RUN_ID" in os.environ:
        return code
    return SOME_FAILED if counts["failed"] or counts["not_reached"] else DONE
