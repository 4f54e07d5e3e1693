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

from w2v_attn.audio.audio_decoder import AudioDecoderOptions
from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.extraction.computing import compute_features
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.extraction.scan import SCAN_SECONDS, Sampled, Scan, scan_rows
from w2v_attn.extraction.store import WRITERS, Store
from w2v_attn.features.transform import Transformed
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.row_reader import row_weight, source_state

# Seconds that a file takes until it is on the disk for good, by several writers on a local one.
SECONDS_PER_FILE = 0.5e-3
# From so many recordings on, or so much of them (ten minutes as WAV), it is worth saying what they will take.
ROWS_THRESHOLD, BYTES_THRESHOLD = 100, 20e6
# Where a run would take so many seconds by its operations, some of it is rehearsed.
TRIAL_THRESHOLD = 0.3
# Seconds of the recording whose file is weighed.
SIZED_SECONDS = 3.0


@dataclass(frozen=True)
class TrialRun:
    """How much of a run is tried before it, in seconds that its operations would take: a share of it, within bounds."""

    share: float
    least: float
    most: float

    def of(self, seconds: float) -> float:
        """For a run of so many seconds."""
        return min(max(self.share * seconds, self.least), self.most)


# A second of it is thinner than the batches of a run, and tells up to twice its time; 4 to 8 are near it. Before
# a run it may cost next to nothing; where nothing but the estimate was asked for it may cost more.
BEFORE_A_RUN, DRY_RUN = TrialRun(0.02, 0.0, 4.0), TrialRun(0.1, 4.0, 8.0)


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
    return len(rows) >= ROWS_THRESHOLD or sum(map(row_weight, rows)) >= BYTES_THRESHOLD


def estimate(
    encoder: Encoder,
    spec: FeatureSpec,
    store: type[Store],
    rows: Sequence[Row],
    output: Path,
    *,
    max_duration: float,
    audio_decoder: AudioDecoderOptions,
    trial: TrialRun = DRY_RUN,
) -> Estimate:
    """What it takes to make a spec of rows and to keep it. Takes some seconds; writes nothing."""
    wanted = spec.layers
    # A decoder that hangs is waited for by the run, and not twice.
    audio_decoder = replace(audio_decoder, timeout=min(audio_decoder.timeout, SCAN_SECONDS))
    with closing(audio_decoder.start()) as decoder:
        scan = scan_rows(rows, store.open_index(output), decoder)

    def samples(sampled: Sampled) -> int:
        usable = sampled.duration is not None and sampled.duration <= max_duration
        found = round((sampled.duration or 0) * encoder.sample_rate) if usable else 0
        return found if found >= encoder.input.least_samples else 0

    def predicted(sampled: Sampled) -> float:
        return encoder.expected_seconds(found, wanted) if (found := samples(sampled)) else 0.0

    def is_usable(sampled: Sampled) -> bool:
        return samples(sampled) > 0

    usable = scan.share(is_usable, missing=False)
    recordings = round((scan.rows - scan.there) * scan.share(is_usable, missing=True))
    lengths = [found for sampled in scan.sample if (found := samples(sampled))]
    each, frame = _bytes(encoder, spec, store, scan, lengths)
    size = recordings * each + scan.total(lambda sampled: encoder.count_frames(samples(sampled)), missing=True) * frame
    files = store.count_files(recordings, size)
    seconds = scan.total(predicted, missing=True)
    if (known := seconds + files * SECONDS_PER_FILE) > TRIAL_THRESHOLD:
        usable_rows = [(sampled.row, found) for sampled in scan.sample if (found := samples(sampled))]
        begun, times = _rehearsed(encoder, spec, audio_decoder, usable_rows, trial.of(known))
        seconds = begun + seconds * times
    block, free, free_files = _disk(output)
    return Estimate(
        recordings=scan.rows,
        looked_at=len(scan.sample),
        unusable=round(scan.rows * (1 - usable)),
        there=scan.there,
        audio=scan.total(lambda sampled: samples(sampled) / encoder.sample_rate, missing=False),
        spread=scan.spread(lambda sampled: samples(sampled) / encoder.sample_rate),
        missing=scan.total(lambda sampled: samples(sampled) / encoder.sample_rate, missing=True),
        files=files,
        bytes=round(size),
        disk=round(size + files * block / 2),
        seconds=seconds + files * SECONDS_PER_FILE,
        free=free,
        free_files=free_files,
        weight=scan.total(lambda sampled: sampled.weight, missing=True),
        dtype=spec.dtype,
    )


def _bytes(
    encoder: Encoder, spec: FeatureSpec, store: type[Store], scan: Scan, lengths: Sequence[int]
) -> tuple[float, float]:
    """Bytes of each recording, and more for each of its frames: of one as it would be."""
    if not lengths:
        return 0.0, 0.0
    row = scan.sample[len(scan.sample) // 2].row
    recording = _noise(encoder, min(round(statistics.median(lengths)), round(SIZED_SECONDS * encoder.sample_rate)))
    recording = replace(recording, source=source_state(row) or "")
    found = encoder.extract([recording.waveform], spec.layers)[0]
    made = spec.without_spans.transform(
        row.id, {name: tensor.to("cpu", copy=True) for name, tensor in found.items()}
    ).features
    beside = store.overhead_bytes(made, spec.metadata(row, recording))
    tensors = sum(tensor.nbytes for tensor in made.values())
    if spec.vectors_per_recording is None:
        return beside, tensors / encoder.count_frames(len(recording.waveform))
    return beside + tensors * spec.vectors_per_recording, 0.0


def _rehearsed(
    encoder: Encoder,
    spec: FeatureSpec,
    audio_decoder: AudioDecoderOptions,
    rows: Sequence[tuple[Row, int]],
    amount: float,
) -> tuple[float, float]:
    """What some of the recordings take here, read, computed, and all but written: (seconds until the first is done, how
    many times longer the others take than their operations let expect).

    rows: with the samples of their recordings. amount: seconds to be expected.
    """
    longest = max(samples for _, samples in rows)
    while encoder.expected_seconds(longest, spec.layers) > amount and longest // 2 >= encoder.input.least_samples:
        longest //= 2
    chosen: dict[str, float] = {}
    parts: list[Row] = []
    for row, samples in rows:
        if samples > longest:  # its beginning
            row, samples = replace(row, duration=longest / encoder.sample_rate), longest
        chosen[row.id] = encoder.expected_seconds(samples, spec.layers)
        parts.append(row)
        if sum(chosen.values()) > amount:
            break

    options = {"max_duration": float("inf"), "budget": encoder.frame_budget(), "writers": WRITERS}
    process = partial(compute_features, encoder, spec.without_spans)

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


def _keep(row: Row, recording: Recording, made: Transformed) -> Transformed:
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
