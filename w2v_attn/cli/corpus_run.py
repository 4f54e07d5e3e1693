"""A run over a corpus on the terminal: progress during the run, and tables at its end."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from w2v_attn.cli import console, values
from w2v_attn.cli.process import DONE, INTERRUPTED, SOME_FAILED, TERMINATED, Interruption, command
from w2v_attn.cli.progress import RunProgress
from w2v_attn.corpus.rows import Corpus, Row
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.run_error import RunError
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.row_reader import row_weight
from w2v_attn.runs.run_stats import RunStats, Throughput, count_conversions

Result = TypeVar("Result")

MAX_TABLE_ROWS = 20  # the output files have all of them


class FinishedRun(NamedTuple):
    """A run that ended or was interrupted.

    Attributes:
        stats: Its statistics.
        seconds: Its duration.
        code: Its exit code.
    """

    stats: RunStats
    seconds: float
    code: int


def watch(
    corpus: Corpus,
    start: Callable[..., Iterator[Outcome[Result]]],
    take: Callable[[Row, Result], None],
    total: float | None = None,
) -> FinishedRun:
    """Execute a run and show its progress, until its end or an interruption.

    Args:
        corpus: The recordings.
        start: Starts the run; called with `interrupted`, a function that says whether to end.
        take: Called with each row that has a result, and the result.
        total: Weight of the rows to compute, where it is known; see `runs.row_reader.row_weight`.
    """
    stats, throughput = RunStats(), Throughput(sum(map(row_weight, corpus.rows)) if total is None else total)
    started = time.monotonic()
    code = DONE
    interruption = Interruption()
    run: Any = start(interrupted=lambda: interruption.code is not None)
    try:
        with interruption, closing(run), RunProgress(len(corpus.rows), throughput, stats) as progress:
            for outcome in run:
                stats.add(outcome)
                throughput.add(outcome, 0.0 if outcome.cached and total is not None else row_weight(outcome.row))
                progress.update()
                if outcome.result is not None:
                    take(outcome.row, outcome.result)
    except RunError as error:
        print(f"stopped: {error}. Once that is fixed, resume with:\n  {command()}", file=sys.stderr)
        code = SOME_FAILED
    except KeyboardInterrupt:  # a second signal during a batch
        pass
    return FinishedRun(stats, time.monotonic() - started, interruption.code or code)


def describe_request(config: Any) -> dict[str, object]:
    """Return the entries of `run.json` about the command."""
    return {"command": command(), "folder": os.getcwd(), "config": values.plain(config)}


def describe_long_form(long_form: LongForm) -> list[tuple[str, str]]:
    """Return a row of the summary where long recordings are not processed exactly."""
    if long_form.kind == "full":
        return []
    return [("long_form", f"{long_form.kind} of {long_form.seconds:g} s: not exact beyond that")]


def conclude(title: str, corpus: Corpus, finished: FinishedRun, output: Path, rows: Sequence[tuple[str, str]]) -> int:
    """Show the summary of a run, with additional rows, and return its exit code."""
    stats, wall = finished.stats, max(finished.seconds, 1e-9)
    missing = len(corpus.rows) - stats.reached
    summary = [
        ("recordings", f"{stats.written + stats.cached:,} of {len(corpus.rows):,}"),
        ("failed", f"{stats.failed:,}, see {FAILURE_LOG}" if stats.failed else "0"),
        ("audio", f"{stats.seconds:,.1f} s, {stats.seconds / wall:.1f} × real time"),
        ("time", f"{console.span(wall)}, {stats.written / wall:,.1f} recordings/s"),
        *([("converted", count_conversions(stats.conversions))] if stats.conversions else []),
        *rows,
        ("output", str(output)),
    ]
    if stats.cached:
        summary.insert(1, ("already there", f"{stats.cached:,}"))
    if missing:
        summary.append(("not reached", f"{missing:,}"))
    if corpus.skipped:
        summary.append(("not audio", ", ".join(f"{count} × {kind}" for kind, count in corpus.skipped.most_common(5))))
    summary += [("flagged", f"{count:,} × {flag}") for flag, count in stats.flags.most_common(5)]
    console.show(title, summary)
    _show_kinds("Could not be used", stats)
    if finished.code in (INTERRUPTED, TERMINATED):
        print(f"interrupted: all written files are complete. Resume with:\n  {command()}", file=sys.stderr)
    return finished.code or (SOME_FAILED if stats.failed else DONE)


def show_failed(title: str, failed: Sequence[tuple[str, str]]) -> None:
    """Show a table of recordings with the reasons why they failed; of many only the first."""
    if failed:
        more = f" (the first {MAX_TABLE_ROWS} of {len(failed)})" if len(failed) > MAX_TABLE_ROWS else ""
        console.show(f"{title}{more}", failed[:MAX_TABLE_ROWS], header=("recording", "reason"))


def _show_kinds(title: str, stats: RunStats) -> None:
    """Show a table of failures: each recording with its reason, or of many each kind of reason with an example."""
    if stats.failed <= len(stats.first_failures):
        show_failed(title, stats.first_failures)
        return
    kinds = stats.kinds.most_common(MAX_TABLE_ROWS)
    of_all = f" (the {MAX_TABLE_ROWS} most frequent of {len(stats.kinds):,} reasons)"
    more = of_all if len(stats.kinds) > MAX_TABLE_ROWS else ""
    rows = []
    for kind, count in kinds:
        row_id, reason = stats.examples[kind]
        rows.append((f"{count:,} ×", reason if count == 1 else kind, row_id))
    console.show(f"{title}: {stats.failed:,}{more}", rows, header=("recordings", "reason", "example"))
