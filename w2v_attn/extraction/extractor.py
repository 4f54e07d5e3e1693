"""What extracts: an encoder here, or others elsewhere; and what is known of it before it begins."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder, load_encoder
from w2v_attn.encoder.layers import check_layers
from w2v_attn.encoder.long import Long
from w2v_attn.extraction.computing import compute
from w2v_attn.extraction.estimate import WRITERS, Estimate, estimate
from w2v_attn.extraction.fingerprint import fingerprint_of
from w2v_attn.extraction.store import Store, Written
from w2v_attn.pretrained.replace import core_in_use
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.record import check_same, made_with, read_record

Outcomes = Generator[Outcome[Written], None, None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be extracted with, as something that another process, or another machine, can be told.

    model: what `load_encoder` takes beside the checkpoint, with its names; of plain values, and `Long`.
    layers, max_duration: see `extract_corpus`. output: the folder, the same one for all.
    """

    checkpoint: str
    model: Mapping[str, Any]
    layers: tuple[str, ...]
    max_duration: float
    output: Path


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
    core: str
    long: Long
    one_by_one: str | None


class Extractor(Protocol):
    """Rows -> files of features."""

    @property
    def description(self) -> Description: ...

    def extract(
        self, rows: Sequence[Row], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """What became of each row, in any order; see `process_rows`. Its batches are those of `feeding.blocks(rows)`.

        Raises:
            ValueError: what is there in the output is of another configuration.
            RunError: the output cannot be written any more, or too much has failed to go on.
        """
        ...


class Worker:
    """An extractor that has its encoder in this process."""

    def __init__(self, encoder: Encoder, layers: Sequence[str], output: Path, max_duration: float):
        self._encoder, self._output, self._max_duration = encoder, output, max_duration
        self._layers = check_layers(layers, encoder.num_layers)
        self.description = _describe(encoder, self._layers)

    @classmethod
    def of(cls, job: Job, **model: Any) -> "Worker":
        """One that loads what a job says. model: what else the encoder is told, or differently."""
        return cls(load_encoder(job.checkpoint, **{**job.model, **model}), job.layers, job.output, job.max_duration)

    def check_output(self) -> None:
        """Raises ValueError where a run of another configuration has begun the output; writes nothing."""
        if (before := read_record(self._output)) is not None:
            check_same(self._output, before, self.description.fingerprint, self.description.made_with)

    def estimate(self, rows: Sequence[Row]) -> Estimate:
        """What `extract` will take of these rows; writes nothing."""
        return estimate(self._encoder, rows, self._output, layers=self._layers, max_duration=self._max_duration)

    def extract(
        self, rows: Sequence[Row], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`."""
        store = Store(self._encoder, self._output, self._layers, self.description.fingerprint)
        yield from process_rows(
            rows,
            self._encoder,
            partial(compute, self._encoder, self._layers),
            store.write,
            max_duration=self._max_duration,
            budget=batch_frames,
            writers=WRITERS,
            settled=store.find,
            interrupted=interrupted,
        )
        store.report()


def _describe(encoder: Encoder, layers: tuple[str, ...]) -> Description:
    device, core = str(encoder.device), core_in_use(encoder.model)
    return Description(
        fingerprint=fingerprint_of(encoder, layers),
        made_with={**made_with(), "device": device, "attention": core},
        batch_frames=encoder.frame_budget(),
        device=device,
        dtype=str(encoder.dtype).removeprefix("torch."),
        core=core,
        long=encoder.long,
        one_by_one=encoder.why_not_ragged,
    )
