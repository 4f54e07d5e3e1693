"""`extract_corpus`: every row of a corpus into a file of features."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.layers import check_layers
from w2v_attn.extraction.computing import compute
from w2v_attn.extraction.fingerprint import fingerprint_of
from w2v_attn.extraction.store import Store, Written
from w2v_attn.feature_files import feature_path
from w2v_attn.pretrained.replace import core_in_use
from w2v_attn.runs.folder import check_same, claimed, made_with
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.running import run
from w2v_attn.whole_files import remove_leftovers

# Files do not wait for each other: most of the time a writer waits for the disk.
WRITERS = 4


def extract_corpus(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    *,
    layers: Sequence[str],
    max_duration: float,
    interrupted: Callable[[], bool] = lambda: False,
    about: Mapping[str, object] | None = None,
) -> Iterator[Outcome[Written]]:
    """Extracts every row into a file of its own below `output`; see `runs.running` for outcomes and failures.

    What a run before this one wrote stays and is not computed again, where the file is whole, of this configuration,
    and of the source as it is now. Killed and started again any number of times, it ends with the same files to the
    bit as if it had never been: on the same machine, with the same versions, threads, rows and sources, and memory
    enough for its batches.

    about: what `run.json` in the output folder says beside what it says anyway.

    Raises:
        ValueError: an unknown layer, before anything is written. When it is begun: the output is in use by another run,
            was begun with another configuration, or cannot be written.
        RunError: the output cannot be written any more (disk full, gone, read-only).
    """
    wanted = check_layers(layers, encoder.num_layers)
    return _extract(encoder, rows, output, wanted, max_duration, interrupted, about or {})


def check_output(encoder: Encoder, output: Path, layers: Sequence[str]) -> None:
    """Raises ValueError where a run of another configuration has begun this output; writes nothing."""
    check_same(output, fingerprint_of(encoder, check_layers(layers, encoder.num_layers)))


def _extract(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    wanted: tuple[str, ...],
    max_duration: float,
    interrupted: Callable[[], bool],
    about: Mapping[str, object],
) -> Iterator[Outcome[Written]]:
    fingerprint = fingerprint_of(encoder, wanted)
    folder = claimed(
        output,
        fingerprint=fingerprint,
        made_with={**made_with(), "device": str(encoder.device), "attention": core_in_use(encoder.model)},
        batch_frames=encoder.frame_budget(),
        recordings=len(rows),
        about=about,
    )
    with folder as claim:
        reached = 0
        try:
            if claim.left_over:
                remove_leftovers({feature_path(output, row.id).parent for row in rows} | {output})
            store = Store(encoder, output, wanted, fingerprint, claim)
            outcomes = run(
                rows,
                output,
                encoder,
                partial(compute, encoder, wanted),
                store.write,
                max_duration=max_duration,
                budget=claim.batch_frames,
                writers=WRITERS,
                settled=store.find,
                interrupted=interrupted,
            )
            with closing(outcomes):
                for outcome in outcomes:
                    claim.count(outcome)
                    reached += 1
                    yield outcome
        except ValueError:
            claim.withdraw()
            raise
        except BaseException as error:
            kind = "stopped" if isinstance(error, Exception) else "interrupted"
            claim.conclude(kind, f"{type(error).__name__}: {error}")
            raise
        store.report()
        claim.conclude("done" if reached == len(rows) else "interrupted")
