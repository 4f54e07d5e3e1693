"""Extraction runs: every row of a corpus to features on disk, by any extractor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.extractor import ExtractionTask, Extractor, InProcessExtractor
from w2v_attn.extraction.feature_spec import FeatureLocation
from w2v_attn.extraction.store import store_of
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.output_folder import RunSpec, acquire
from w2v_attn.runs.rank import ALONE, Rank, blocks_of, rows_of
from w2v_attn.runs.recorded_run import recorded_run
from w2v_attn.runs.shared_folder import acquire_shared


def extract_corpus(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    about: Mapping[str, object] | None = None,
    **task: Any,
) -> Iterator[Outcome[FeatureLocation]]:
    """Extract every row to features in `output`; see `extract_with`.

    Args:
        encoder: The encoder.
        rows: The rows.
        output: The output folder.
        interrupted: See `extract_with`.
        about: See `extract_with`.
        task: Further arguments of `ExtractionTask`: layers, max_duration, …

    Raises:
        ValueError: an unknown layer or layout, before anything is written; and what `extract_with` raises.
    """
    asked = ExtractionTask(output=output, **task)
    return extract_with(InProcessExtractor(encoder, asked), asked, rows, interrupted=interrupted, about=about)


def extract_with(
    extractor: Extractor,
    task: ExtractionTask,
    rows: Sequence[Row],
    *,
    rank: Rank = ALONE,
    interrupted: Callable[[], bool] = lambda: False,
    about: Mapping[str, object] | None = None,
) -> Iterator[Outcome[FeatureLocation]]:
    """Extract the rank's rows, yield the outcome of each, and keep `failures.jsonl` and `run.json` in the output.

    Results of an earlier run are kept and not computed again if the file is undamaged, and of this configuration and
    the current source. However often a run is killed and resumed, and whichever process extracts which rows, it ends
    with bit-identical files: given the same machine, versions, threads, rows and sources, and enough memory for its
    batches.

    A row that cannot be used is recorded in `failures.jsonl` with its reason, and the run continues; at the end the
    file is in the order of the rows. Rows that failed in an earlier run are retried, and those that this run does not
    reach stay in the file.

    Args:
        extractor: The extractor.
        task: What it extracts.
        rows: All rows of the list.
        rank: Which of them this process extracts.
        interrupted: Asked between batches; when it returns True, computed results are written, and the run ends.
        about: Further entries of `run.json`.

    Raises:
        ValueError: at the start: the output is in use by another run, belongs to another configuration, or cannot be
            written.
        RunError: the output can no longer be written (disk full, gone, read-only), or an engine cannot continue.
    """
    described, output, store = extractor.description, task.output, store_of(task.layout)
    blocks = blocks_of(rows, store.rows_per_group)
    mine = rank.select(blocks)
    spec = RunSpec(
        blocks=blocks,
        fingerprint=described.fingerprint,
        made_with=described.made_with,
        batch_frames=described.batch_frames,
        about=about or {},
        prepare=lambda: store.prepare(output, rows),
        single_machine_reason=store.single_machine_reason,
    )
    with acquire(output, spec) if rank.is_alone else acquire_shared(output, rank, spec) as folder:
        yield from recorded_run(
            folder,
            rows_of(mine),
            lambda: extractor.extract(mine, batch_frames=folder.batch_frames, interrupted=interrupted),
        )
