"""`extract_corpus`: every row of a corpus into features on disk; and the same by whatever extracts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.extractor import ExtractionTask, Extractor, InProcessExtractor
from w2v_attn.extraction.feature_spec import FeatureLocation
from w2v_attn.extraction.store import store_of
from w2v_attn.runs.failure_log import FailureLog
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.output_folder import RunSpec, acquire
from w2v_attn.runs.rank import ALONE, Rank, blocks_of, rows_of
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
    """Extracts every row into features below `output`; see `extract_with`.

    task: what `ExtractionTask` takes beside the output: layers, max_duration …

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
    """Extracts the rank's rows, yields what became of each, and keeps `failures.jsonl` and `run.json` in the output.

    What a run before this one wrote stays and is not computed again, where the file is whole, of this configuration,
    and of the source as it is now. Killed and started again any number of times, it ends with the same files to the
    bit as if it had never been, whoever extracts which rows: with the same machine, versions, threads, rows and
    sources, and memory enough for its batches.

    A row that cannot be used is written to `failures.jsonl`, with its reason, and the run goes on; at the end that file
    is in the order of the rows. Rows that failed in a run before this one are tried again, and those that this one does
    not reach stay in the file.

    interrupted: asked between batches; where it says so, what is computed is finished, and the run ends.
    about: what `run.json` says beside what it says anyway.

    Raises:
        ValueError: when it is begun: the output is in use by another run, was begun with another configuration, or
            cannot be written.
        RunError: the output cannot be written any more (disk full, gone, read-only), or an engine cannot go on.
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
        try:
            outcomes = extractor.extract(mine, batch_frames=folder.batch_frames, interrupted=interrupted)
            with FailureLog(folder.failures_dir, rows_of(mine)) as failures, closing(outcomes):
                for outcome in outcomes:
                    failures.note(outcome)
                    folder.count(outcome)
                    yield outcome
        except ValueError:
            folder.rollback()
            raise
        except BaseException as error:
            kind = "stopped" if isinstance(error, Exception) else "interrupted"
            folder.conclude(kind, f"{type(error).__name__}: {error}")
            raise
        folder.conclude()
