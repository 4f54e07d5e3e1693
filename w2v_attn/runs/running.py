"""`run`: a run over a corpus, from the rows to a ledger of failures."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.ledger import Ledger
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.processing import Batch
from w2v_attn.runs.reading import Model

Found = TypeVar("Found")
Result = TypeVar("Result")


def run(
    rows: Sequence[Row],
    output: Path,
    model: Model,
    process: Callable[[Batch], Sequence[Found | ValueError]],
    finish: Callable[[Row, Recording, Found], Result],
    **options: Any,
) -> Generator[Outcome[Result], None, None]:
    """Like `process_rows`; and what cannot be used is written down.

    A row that cannot be used is written to `failures.jsonl` in the output folder, with its reason, and the run goes on;
    at the end that file is in the order of the rows. Rows that failed in a run before this one are tried again, and
    those that this one does not reach stay in the file.

    Raises:
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    with Ledger(output, rows) as ledger, closing(process_rows(rows, model, process, finish, **options)) as outcomes:
        for outcome in outcomes:
            ledger.note(outcome)
            yield outcome
