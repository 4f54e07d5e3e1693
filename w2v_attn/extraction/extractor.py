"""What extracts: an encoder here, or others elsewhere; and what is known of it before it begins."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.extraction.computing import compute
from w2v_attn.extraction.estimate import BEFORE_A_RUN, Estimate, Rehearsal, estimate
from w2v_attn.extraction.product import Product, Written
from w2v_attn.extraction.store import MIRRORED, WRITERS, store_of
from w2v_attn.features.making import Making
from w2v_attn.patching.replace import backend_in_use
from w2v_attn.runs.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.place import Place
from w2v_attn.runs.rank import Part, rows_of
from w2v_attn.runs.record import check_same, made_with, read_record

Outcomes = Generator[Outcome[Written], None, None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is extracted from every recording, and where to.

    output: a folder. layers: see `encoder.layers.check_layers`. max_duration: seconds; longer recordings are not used.
    layout: see `store.STORES`. making: what is made of the layers; None: nothing.
    audio_decoder: where, and within which limits, recordings are decoded.
    """

    output: Path
    layers: Sequence[str]
    max_duration: float
    layout: str = MIRRORED
    making: Making | None = None
    audio_decoder: AudioDecoderOptions = INLINE


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task and what to do it with, as something that another process, or another machine, can be told.

    model: what `load_encoder` takes beside the checkpoint, with its names; of plain values, and `LongForm`.
    """

    checkpoint: str
    model: Mapping[str, Any]
    task: Task


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of an extractor.

    fingerprint: what decides what the features are. made_with: what decides their last bits.
    batch_frames: of a batch, as memory allows. one_by_one: why recordings do not lie side by side; None: they do.
    """

    fingerprint: Mapping[str, str]
    made_with: Mapping[str, object]
    batch_frames: int
    device: str
    dtype: str
    backend: str
    long_form: LongForm
    one_by_one: str | None


class Extractor(Protocol):
    """Rows -> features on disk."""

    @property
    def description(self) -> Description: ...

    def extract(
        self, parts: Sequence[Part], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """What became of each row of some parts of the list, in any order; see `process_rows`.

        Raises:
            ValueError: what is there in the output is of another configuration.
            RunError: the output cannot be written any more, or too much has failed to go on.
        """
        ...


class Worker:
    """An extractor that has its encoder in this process."""

    def __init__(self, encoder: Encoder, task: Task):
        self._encoder, self._task = encoder, task
        self._store = store_of(task.layout)
        self._product = Product(encoder, task.layers, task.making)
        self.description = _describe(encoder, self._product, task.layout)

    @classmethod
    def of(cls, job: Job, **model: Any) -> "Worker":
        """One that loads what a job says. model: what else the encoder is told, or differently."""
        return cls(Encoder.load(job.checkpoint, **{**job.model, **model}), job.task)

    def check_output(self) -> None:
        """Raises ValueError where a run of another configuration has begun the output; writes nothing."""
        if (before := read_record(self._task.output)) is not None:
            check_same(self._task.output, before, self.description.fingerprint, self.description.made_with)

    def estimate(self, rows: Sequence[Row], *, rehearsal: Rehearsal = BEFORE_A_RUN) -> Estimate:
        """What `extract` will take of these rows; writes nothing. rehearsal: how much of it is tried."""
        task = self._task
        return estimate(
            self._encoder,
            self._product,
            self._store,
            rows,
            task.output,
            max_duration=task.max_duration,
            audio_decoder=task.audio_decoder,
            rehearsal=rehearsal,
        )

    def extract(
        self, parts: Sequence[Part], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`."""
        rows = rows_of(parts)
        output, numbers = self._task.output, [part.number for part in parts]
        store = self._store(self._product, output, rows, Place(output).check, numbers)
        outcomes = process_rows(
            rows,
            self._encoder,
            partial(compute, self._encoder, self._product),
            store.write,
            max_duration=self._task.max_duration,
            budget=batch_frames,
            writers=WRITERS,
            settled=store.find,
            interrupted=interrupted,
            audio_decoder=self._task.audio_decoder,
        )
        yield from store.through(outcomes)
        store.report()


def _describe(encoder: Encoder, product: Product, layout: str) -> Description:
    device, backend = str(encoder.device), backend_in_use(encoder.model)
    return Description(
        # The layout is not in the product's, for the features are the same in every one.
        fingerprint=product.fingerprint | ({} if layout == MIRRORED else {"layout": layout}),
        made_with={**made_with(), "device": device, "attention": backend},
        batch_frames=encoder.frame_budget(),
        device=device,
        dtype=str(encoder.dtype).removeprefix("torch."),
        backend=backend,
        long_form=encoder.long_form,
        one_by_one=encoder.unpacked_reason,
    )
