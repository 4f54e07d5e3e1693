"""Extractors: an encoder in this process, or several elsewhere; and what they are asked to do."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from w2v_attn.audio.audio_decoder import INLINE, AudioDecoderOptions
from w2v_attn.corpus.rows import Row
from w2v_attn.dtypes import dtype_name
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.extraction.computing import compute_features
from w2v_attn.extraction.estimate import BEFORE_A_RUN, Estimate, TrialRun, estimate
from w2v_attn.extraction.feature_spec import FeatureLocation, FeatureSpec
from w2v_attn.extraction.store import MIRRORED, WRITERS, store_of
from w2v_attn.features.transform import FeatureTransform
from w2v_attn.patching.replace import backend_in_use
from w2v_attn.runs.outcomes import Outcome
from w2v_attn.runs.output_folder import FolderIdentity
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.rank import Block, rows_of
from w2v_attn.runs.record import check_same, made_with, read_record

Outcomes = Generator[Outcome[FeatureLocation], None, None]


@dataclass(frozen=True, kw_only=True)
class ExtractionTask:
    """What is extracted from every recording, and where to.

    Attributes:
        output: The output folder.
        layers: See `encoder.layers.check_layers`.
        max_duration: Seconds; longer recordings are not used.
        layout: See `store.STORES`.
        transform: What is made of the layers; None keeps them as they are.
        audio_decoder: Where, and within which limits, recordings are decoded, and which channel of them.
    """

    output: Path
    layers: Sequence[str]
    max_duration: float
    layout: str = MIRRORED
    transform: FeatureTransform | None = None
    audio_decoder: AudioDecoderOptions = INLINE


@dataclass(frozen=True, kw_only=True)
class ExtractionJob:
    """A task and the model for it, as plain values that can be sent to another process or machine.

    Attributes:
        checkpoint: The checkpoint.
        model: Further arguments of `load_encoder` by name: plain values, and `LongForm`.
        task: The task.
    """

    checkpoint: str
    model: Mapping[str, Any]
    task: ExtractionTask


@dataclass(frozen=True, kw_only=True)
class ExtractorDescription:
    """What is known of an extractor before it starts.

    Attributes:
        fingerprint: What determines the features.
        made_with: What determines their last bits.
        batch_frames: Frames per batch, as memory allows.
        device, dtype, backend, long_form: Of the encoder.
        unpacked_reason: Why recordings are not packed; None if they are.
    """

    fingerprint: Mapping[str, str]
    made_with: Mapping[str, object]
    batch_frames: int
    device: str
    dtype: str
    backend: str
    long_form: LongForm
    unpacked_reason: str | None


class Extractor(Protocol):
    """An object that extracts rows to features on disk."""

    @property
    def description(self) -> ExtractorDescription: ...

    def extract(
        self, blocks: Sequence[Block], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """Yield the outcome of each row of some blocks of the list, in any order; see `process_rows`.

        Raises:
            ValueError: the output belongs to another configuration.
            RunError: the output can no longer be written, or too much has failed to continue.
        """
        ...


class InProcessExtractor:
    """An extractor with an encoder in this process."""

    def __init__(self, encoder: Encoder, task: ExtractionTask):
        self._encoder, self._task = encoder, task
        self._store = store_of(task.layout)
        self._spec = FeatureSpec(encoder, task.layers, task.transform, channel=task.audio_decoder.channel)
        self.description = _describe(encoder, self._spec, task.layout)

    @classmethod
    def load(cls, job: ExtractionJob, **model: Any) -> "InProcessExtractor":
        """Load the encoder of a job. model: arguments of `Encoder.load` that are added or replaced."""
        return cls(Encoder.load(job.checkpoint, **{**job.model, **model}), job.task)

    def check_output(self) -> None:
        """Raise ValueError if the output belongs to another configuration; writes nothing."""
        if (before := read_record(self._task.output)) is not None:
            check_same(self._task.output, before, self.description.fingerprint, self.description.made_with)

    def estimate(self, rows: Sequence[Row], *, trial: TrialRun = BEFORE_A_RUN) -> Estimate:
        """Return what `extract` will take for these rows; writes nothing. trial: how much of it is tried."""
        task = self._task
        return estimate(
            self._encoder,
            self._spec,
            self._store,
            rows,
            task.output,
            max_duration=task.max_duration,
            audio_decoder=task.audio_decoder,
            trial=trial,
        )

    def extract(
        self, blocks: Sequence[Block], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`."""
        rows = rows_of(blocks)
        output, numbers = self._task.output, [block.number for block in blocks]
        store = self._store(self._spec, output, rows, FolderIdentity(output).check, numbers)
        outcomes = process_rows(
            rows,
            self._encoder,
            partial(compute_features, self._encoder, self._spec),
            store.write,
            max_duration=self._task.max_duration,
            budget=batch_frames,
            writers=WRITERS,
            find_cached=store.find,
            flags_of=self._spec.flags,
            interrupted=interrupted,
            audio_decoder=self._task.audio_decoder,
        )
        yield from store.durable(outcomes)
        store.log_recomputed()


def _describe(encoder: Encoder, spec: FeatureSpec, layout: str) -> ExtractorDescription:
    device, backend = str(encoder.device), backend_in_use(encoder.model)
    return ExtractorDescription(
        # The fingerprint of the features has no layout, because they are the same in every one.
        fingerprint=spec.fingerprint | ({} if layout == MIRRORED else {"layout": layout}),
        made_with={**made_with(), "device": device, "attention": backend},
        batch_frames=encoder.frame_budget(),
        device=device,
        dtype=dtype_name(encoder.dtype),
        backend=backend,
        long_form=encoder.long_form,
        unpacked_reason=encoder.unpacked_reason,
    )


# A process waits for its last results at the end of a chunk: large chunks make that rare. Small chunks at the end make
# all processes finish at about the same time.
MAX_BLOCKS = 16
CHUNKS_PER_WORKER = 4


def chunks(blocks: Sequence[Block], workers: int) -> Iterator[Sequence[Block]]:
    """Yield the blocks in order, in chunks that are large at first and of one block at the end."""
    first = 0
    while first < len(blocks):
        count = min(MAX_BLOCKS, max(1, (len(blocks) - first) // (CHUNKS_PER_WORKER * workers)))
        yield blocks[first : first + count]
        first += count
