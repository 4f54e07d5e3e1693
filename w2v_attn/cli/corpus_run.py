"""A run over a corpus as people see it: progress while it goes, and tables at its end."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from w2v_attn.cli import console
from w2v_attn.cli.exit_codes import DONE, INTERRUPTED, SOME_FAILED, TERMINATED
from w2v_attn.cli.process import Interruption, command
from w2v_attn.cli.progress import RunProgress
from w2v_attn.corpus.rows import Corpus, Row
from w2v_attn.run_error import RunError
from w2v_attn.runs.failure_log import FAILURE_LOG
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.row_reader import row_weight
from w2v_attn.runs.run_stats import RunStats, Throughput

Result = TypeVar("Result")

SHOWN = 20  # rows of a table; files have all of them


class Watched(NamedTuple):
    """A run that ended or was interrupted. seconds: that it took. code: for the shell."""

    tally: RunStats
    seconds: float
    code: int


def watch(
    corpus: Corpus,
    start: Callable[..., Iterator[Outcome[Result]]],
    take: Callable[[Row, Result], None],
    total: float | None = None,
) -> Watched:
    """Goes through a run with progress, until its end or an interruption.

    start: begins it; is told `interrupted`. take: is given rows with their results, as they come.
    total: the weight of what is not there yet, where that is known; see `runs.row_reader.row_weight`.
    """
    tally, pace = RunStats(), Throughput(sum(map(row_weight, corpus.rows)) if total is None else total)
    started = time.monotonic()
    code = DONE
    interruption = Interruption()
    run: Any = start(interrupted=lambda: interruption.code is not None)
    try:
        with interruption, closing(run), RunProgress(len(corpus.rows), pace, tally) as progress:
            for outcome in run:
                tally.add(outcome)
                pace.add(outcome, 0.0 if outcome.cached and total is not None else row_weight(outcome.row))
                progress.update()
                if outcome.result is not None:
                    take(outcome.row, outcome.result)
    except RunError as error:
        print(f"stopped: {error}. When that is mended, this goes on:\n  {command()}", file=sys.stderr)
        code = SOME_FAILED
    except KeyboardInterrupt:  # the second signal did not wait for the batch at hand
        pass
    return Watched(tally, time.monotonic() - started, interruption.code or code)


def conclude(title: str, corpus: Corpus, watched: Watched, output: Path, rows: Sequence[tuple[str, str]]) -> int:
    """The summary of a run, with these rows in it; its exit code."""
    tally, wall = watched.tally, max(watched.seconds, 1e-9)
    missing = len(corpus.rows) - tally.reached
    summary = [
        ("recordings", f"{tally.written + tally.cached:,} of {len(corpus.rows):,}"),
        ("failed", f"{tally.failed:,}, see {FAILURE_LOG}" if tally.failed else "0"),
        ("audio", f"{tally.seconds:,.1f} s, {tally.seconds / wall:.1f} × real time"),
        ("time", f"{console.span(wall)}, {tally.written / wall:,.1f} recordings/s"),
        *rows,
        ("output", str(output)),
    ]
    if tally.cached:
        summary.insert(1, ("already there", f"{tally.cached:,}"))
    if missing:
        summary.append(("not reached", f"{missing:,}"))
    if corpus.skipped:
        summary.append(("no audio", ", ".join(f"{count} × {kind}" for kind, count in corpus.skipped.most_common(5))))
    summary += [("flagged", f"{count:,} × {flag}") for flag, count in tally.flags.most_common(5)]
    console.show(title, summary)
    _show_kinds("Could not be used", tally)
    if watched.code in (INTERRUPTED, TERMINATED):
        print(f"interrupted: what is written is whole. To go on:\n  {command()}", file=sys.stderr)
    return watched.code or (SOME_FAILED if tally.failed else DONE)


def show_failed(title: str, failed: Sequence[tuple[str, str]]) -> None:
    """A table of recordings with the reasons; of many the first."""
    if failed:
        more = f" (the first {SHOWN} of {len(failed)})" if len(failed) > SHOWN else ""
        console.show(f"{title}{more}", failed[:SHOWN], header=("recording", "reason"))


def _show_kinds(title: str, tally: RunStats) -> None:
    """A table of what failed: every recording with its reason, or of many the kinds of reasons with one of each."""
    if tally.failed <= len(tally.first_failures):
        show_failed(title, tally.first_failures)
        return
    kinds = tally.kinds.most_common(SHOWN)
    more = f" (the {SHOWN} most frequent of {len(tally.kinds):,} reasons)" if len(tally.kinds) > SHOWN else ""
    rows = []
    for kind, count in kinds:
        row_id, reason = tally.examples[kind]
        rows.append((f"{count:,} ×", reason if count == 1 else kind, row_id))
    console.show(f"{title}: {tally.failed:,}{more}", rows, header=("recordings", "reason", "one of them"))
