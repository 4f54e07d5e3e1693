"""`extract_corpus`: every row of a corpus into features on disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.computing import compute
from w2v_attn.extraction.product import Product, Written
from w2v_attn.extraction.store import Store, store_of
from w2v_attn.feature_sets.making import Making
from w2v_attn.pretrained.replace import core_in_use
from w2v_attn.runs.folder import claimed, made_with
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.running import run

# Files do not wait for each other: most of the time a writer waits for the disk.
WRITERS = 4


def extract_corpus(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    *,
    layers: Sequence[str],
    max_duration: float,
    layout: str = "mirrored",
    making: Making | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    about: Mapping[str, object] | None = None,
) -> Iterator[Outcome[Written]]:
    """Extracts every row into features below `output`; see `runs.running` for outcomes and failures.

    layout: see `store.STORES`. layers: see `encoder.layers.check_layers`. making: what is made of them; None: nothing.

    What a run before this one wrote stays and is not computed again, where the file is whole, of this configuration,
    and of the source as it is now. Killed and started again any number of times, it ends with the same files to the
    bit as if it had never been: on the same machine, with the same versions, threads, rows and sources, and memory
    enough for its batches.

    about: what `run.json` in the output folder says beside what it says anyway.

    Raises:
        ValueError: an unknown layer or layout, before anything is written. When it is begun: the output is in use by
            another run, was begun with another configuration, holds something else, or cannot be written.
        RunError: the output cannot be written any more (disk full, gone, read-only).
    """
    product = Product(encoder, layers, making)
    return _extract(encoder, rows, output, product, store_of(layout), layout, max_duration, interrupted, about or {})


def _extract(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    product: Product,
    store_type: type[Store],
    layout: str,
    max_duration: float,
    interrupted: Callable[[], bool],
    about: Mapping[str, object],
) -> Iterator[Outcome[Written]]:
    folder = claimed(
        output,
        # Not in the product's, for the features are the same in every layout.
        fingerprint=product.fingerprint | ({} if layout == "mirrored" else {"layout": layout}),
        made_with={**made_with(), "device": str(encoder.device), "attention": core_in_use(encoder.model)},
        batch_frames=encoder.frame_budget(),
        recordings=len(rows),
        about=about,
    )
    with folder as claim:
        reached = 0
        try:
            store_type.prepare(output, rows, left_over=claim.left_over)
            store = store_type(product, output, rows, claim.check_there)
            outcomes = run(
                rows,
                output,
                encoder,
                partial(compute, encoder, product),
                store.write,
                max_duration=max_duration,
                budget=claim.batch_frames,
                writers=WRITERS,
                settled=store.find,
                through=store.through,
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
