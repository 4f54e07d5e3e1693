"""Size and time of a run before it starts: from headers of some of the recordings, and what the model does here."""

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.computing import compute
from w2v_attn.extraction.product import Product
from w2v_attn.extraction.store import WRITERS, Store
from w2v_attn.extraction.survey import PATIENCE, Looked, Survey, look
from w2v_attn.features.making import Made
from w2v_attn.runs.audio_decoder import AudioDecoderOptions
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.sources import row_weight, source_state

# Seconds that a file takes until it is on the disk for good, by several writers on a local one.
FILE = 0.5e-3
# From so many recordings on, or so much of them (ten minutes as WAV), it is worth saying what they will take.
MANY, MUCH = 100, 20e6
# Where a run would take so many seconds by its operations, some of it is rehearsed.
WORTH_REHEARSING = 0.3
# Seconds of the recording whose file is weighed.
WEIGHED = 3.0


@dataclass(frozen=True)
class Rehearsal:
    """How much of a run is tried before it, in seconds that its operations would take: a share of it, within bounds."""

    share: float
    least: float
    most: float

    def of(self, seconds: float) -> float:
        """For a run of so many seconds."""
        return min(max(self.share * seconds, self.least), self.most)


# A second of it is thinner than the batches of a run, and tells up to twice its time; 4 to 8 are near it. Before
# a run it may cost next to nothing; where nothing but the estimate was asked for it may cost more.
BEFORE_A_RUN, DRY_RUN = Rehearsal(0.02, 0.0, 4.0), Rehearsal(0.1, 4.0, 8.0)


@dataclass(frozen=True)
class Estimate:
    """What a run is before it starts.

    recordings: of the list. looked_at: those whose headers were read. unusable: those that give no features, about.
    there: those whose features an earlier run left, where these count. audio: seconds, of all; spread: how far off that
    may be, as a share of it, 19 times in 20. missing: seconds that are to be computed. files: to be written; bytes: in
    them; disk: what they take of it. seconds: the time that it takes. free, free_files: of the disk of the output;
    None where that is not known. weight: of what is to be computed; see `runs.sources.row_weight`. dtype: of features.
    """

    recordings: int
    looked_at: int
    unusable: int
    there: int
    audio: float
    spread: float
    missing: float
    files: int
    bytes: int
    disk: int
    seconds: float
    free: int | None
    free_files: int | None
    weight: float
    dtype: str

    def as_record(self) -> dict[str, float | int | str | None]:
        """For `run.json`."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def is_worth_estimating(rows: Sequence[Row]) -> bool:
    """Whether a run over these rows is long enough to say before it what it will take."""
    return len(rows) >= MANY or sum(map(row_weight, rows)) >= MUCH


def estimate(
    encoder: Encoder,
    product: Product,
    store: type[Store],
    rows: Sequence[Row],
    output: Path,
    *,
    max_duration: float,
    audio_decoder: AudioDecoderOptions,
    rehearsal: Rehearsal = DRY_RUN,
) -> Estimate:
    """What it takes to make a product of rows and to keep it. Takes some seconds; writes nothing."""
    wanted = product.layers
    # A decoder that hangs is waited for by the run, and not twice.
    audio_decoder = replace(audio_decoder, timeout=min(audio_decoder.timeout, PATIENCE))
    with closing(audio_decoder.start()) as decoder:
        survey = look(rows, store.peek(output), decoder)

    def samples(looked: Looked) -> int:
        usable = looked.duration is not None and looked.duration <= max_duration
        found = round((looked.duration or 0) * encoder.sample_rate) if usable else 0
        return found if found >= encoder.input.min_samples else 0

    def predicted(looked: Looked) -> float:
        return encoder.expected_seconds(found, wanted) if (found := samples(looked)) else 0.0

    def is_usable(looked: Looked) -> bool:
        return samples(looked) > 0

    usable = survey.share(is_usable, missing=False)
    recordings = round((survey.rows - survey.there) * survey.share(is_usable, missing=True))
    lengths = [found for looked in survey.sample if (found := samples(looked))]
    each, frame = _bytes(encoder, product, store, survey, lengths)
    size = recordings * each + survey.total(lambda looked: encoder.count_frames(samples(looked)), missing=True) * frame
    files = store.files(recordings, size)
    seconds = survey.total(predicted, missing=True)
    if (known := seconds + files * FILE) > WORTH_REHEARSING:
        usable_rows = [(looked.row, found) for looked in survey.sample if (found := samples(looked))]
        begun, times = _rehearsed(encoder, product, audio_decoder, usable_rows, rehearsal.of(known))
        seconds = begun + seconds * times
    block, free, free_files = _disk(output)
    return Estimate(
        recordings=survey.rows,
        looked_at=len(survey.sample),
        unusable=round(survey.rows * (1 - usable)),
        there=survey.there,
        audio=survey.total(lambda looked: samples(looked) / encoder.sample_rate, missing=False),
        spread=survey.spread(lambda looked: samples(looked) / encoder.sample_rate),
        missing=survey.total(lambda looked: samples(looked) / encoder.sample_rate, missing=True),
        files=files,
        bytes=round(size),
        disk=round(size + files * block / 2),
        seconds=seconds + files * FILE,
        free=free,
        free_files=free_files,
        weight=survey.total(lambda looked: looked.weight, missing=True),
        dtype=product.dtype,
    )


def _bytes(
    encoder: Encoder, product: Product, store: type[Store], survey: Survey, lengths: Sequence[int]
) -> tuple[float, float]:
    """Bytes of each recording, and more for each of its frames: of one as it would be."""
    if not lengths:
        return 0.0, 0.0
    row = survey.sample[len(survey.sample) // 2].row
    recording = _noise(encoder, min(round(statistics.median(lengths)), round(WEIGHED * encoder.sample_rate)))
    recording = replace(recording, source=source_state(row) or "")
    found = encoder.extract([recording.waveform], product.layers)[0]
    made = product.whole.make(row.id, {name: tensor.to("cpu", copy=True) for name, tensor in found.items()}).features
    beside = store.beside(made, product.metadata(row, recording))
    tensors = sum(tensor.nbytes for tensor in made.values())
    if product.vectors is None:
        return beside, tensors / encoder.count_frames(len(recording.waveform))
    return beside + tensors * product.vectors, 0.0


def _rehearsed(
    encoder: Encoder,
    product: Product,
    audio_decoder: AudioDecoderOptions,
    rows: Sequence[tuple[Row, int]],
    amount: float,
) -> tuple[float, float]:
    """What some of the recordings take here, read, computed, and all but written: (seconds until the first is done, how
    many times longer the others take than their operations let expect).

    rows: with the samples of their recordings. amount: seconds to be expected.
    """
    longest = max(samples for _, samples in rows)
    while encoder.expected_seconds(longest, product.layers) > amount and longest // 2 >= encoder.input.min_samples:
        longest //= 2
    chosen: dict[str, float] = {}
    parts: list[Row] = []
    for row, samples in rows:
        if samples > longest:  # its beginning
            row, samples = replace(row, duration=longest / encoder.sample_rate), longest
        chosen[row.id] = encoder.expected_seconds(samples, product.layers)
        parts.append(row)
        if sum(chosen.values()) > amount:
            break

    options = {"max_duration": float("inf"), "budget": encoder.frame_budget(), "writers": WRITERS}
    process = partial(compute, encoder, product.whole)

    def tried(rows: Sequence[Row]) -> tuple[float, float]:
        """(seconds taken, seconds to be expected)"""
        began = time.perf_counter()
        outcomes = list(process_rows(rows, encoder, process, _keep, audio_decoder=audio_decoder, **options))
        taken = time.perf_counter() - began
        return taken, sum(chosen[outcome.row.id] for outcome in outcomes if outcome.reason is None)

    tried(parts[:1])  # what is paid for once: libraries, kernels, a cold file
    (first, of_first), (taken, expected) = tried(parts[:1]), tried(parts)
    if taken > first and expected > 2 * of_first:
        return first, (taken - first) / (expected - of_first)
    return 0.0, taken / expected if expected else 1.0


def _keep(row: Row, recording: Recording, made: Made) -> Made:
    return made


def _noise(encoder: Encoder, samples: int) -> Recording:
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(0)) / 10
    return Recording(waveform, encoder.sample_rate, encoder.sample_rate, 1, ())


def _disk(output: Path) -> tuple[int, int | None, int | None]:
    """Bytes of a block of the disk that the output is or will be on; bytes and files that are free there."""
    there = output.absolute()
    while not there.exists():
        there = there.parent
    try:
        found = os.statvfs(there)
        # Some file systems count no files.
        return found.f_frsize, shutil.disk_usage(there).free, found.f_favail if found.f_files > 0 else None
    except OSError:
        return 0, None, None
