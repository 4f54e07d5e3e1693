"""A run in an output folder that it holds: its failures, its counts and how it ended are recorded."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

from w2v_attn.corpus.rows import Row
from w2v_attn.runs.failure_log import FailureLog
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.output_folder import RunFolder

Result = TypeVar("Result")


def recorded_run(
    folder: RunFolder, rows: Sequence[Row], start: Callable[[], Generator[Outcome[Result], Any, None]]
) -> Iterator[Outcome[Result]]:
    """Yield the outcomes of a run, and keep `failures.jsonl` and `run.json`.

    Args:
        folder: The output folder.
        rows: The rows of this process.
        start: Starts the run. A ValueError that it raises, at once or later, refuses the run: `run.json` is restored.
    """
    try:
        outcomes = start()
        with FailureLog(folder.failures_dir, rows) as failures, closing(outcomes):
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
