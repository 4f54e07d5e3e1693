"""An estimate of the size and time of a run: from a sample of headers, and a short trial on this machine."""

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
from w2v_attn.encoder.weight_memory import device_memory, weight_bytes
from w2v_attn.extraction.computing import compute_features
from w2v_attn.extraction.feature_spec import FeatureSpec
from w2v_attn.extraction.scan import SCAN_SECONDS, Sampled, Scan, scan_rows
from w2v_attn.extraction.store import WRITERS, Store
from w2v_attn.features.transform import Transformed
from w2v_attn.runs.pipeline import process_rows
from w2v_attn.runs.row_reader import row_weight, source_state

# Seconds to write and flush a file, with several writers on a local disk.
SECONDS_PER_FILE = 0.5e-3
# Rows, or bytes of audio (ten minutes as WAV), above which a run is preceded by an estimate.
ROWS_THRESHOLD, BYTES_THRESHOLD = 100, 20e6
# Predicted seconds above which a part of the run is tried.
TRIAL_THRESHOLD = 0.3
# Seconds of the recording that determines the size of files.
SIZED_SECONDS = 3.0


@dataclass(frozen=True)
class TrialRun:
    """How much of a run is tried before it, in predicted seconds: a share of the run, within bounds.

    Attributes:
        share: Share of the run, 0 to 1.
        min_seconds, max_seconds: Bounds.
    """

    share: float
    min_seconds: float
    max_seconds: float

    def seconds(self, run_seconds: float) -> float:
        """Return the length of the trial for a run of this length, both in predicted seconds."""
        return min(max(self.share * run_seconds, self.min_seconds), self.max_seconds)


# One second of trial has smaller batches than the run, and predicts up to twice its time; 4 to 8 seconds come close.
# Before a run the trial must cost next to nothing; a dry run may cost more.
BEFORE_A_RUN, DRY_RUN = TrialRun(0.02, 0.0, 4.0), TrialRun(0.1, 4.0, 8.0)


@dataclass(frozen=True)
class Estimate:
    """What a run will take. The fields are keys of `run.json`.

    Attributes:
        recordings: Recordings in the list.
        looked_at: Recordings whose headers were read.
        unusable: About how many recordings will fail.
        there: Recordings with valid features of an earlier run.
        audio: Seconds of audio of all recordings.
        spread: Half the 95 % confidence interval of `audio`, as a share of it.
        missing: Seconds of audio to be computed.
        files: Files to be written.
        bytes: Bytes in these files.
        disk: Bytes that they take on the disk.
        seconds: Seconds that the run takes.
        free, free_files: Free bytes and files on the output's disk; None if not known.
        weight: Weight of the rows to be computed; see `row_reader.row_weight`.
        dtype: Dtype of the features.
        weights: Bytes of the model's weights.
        memory: Bytes of memory of their device; None if not known.
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
    weights: int
    memory: int | None

    def as_record(self) -> dict[str, float | int | str | None]:
        """Return the estimate as it is written to `run.json`."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def is_worth_estimating(rows: Sequence[Row]) -> bool:
    """Return whether a run over these rows is long enough to be preceded by an estimate."""
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
    """Estimate what it takes to extract and store features of these rows. Takes some seconds, and writes nothing.

    Args:
        encoder: The encoder.
        spec: What is made of each recording.
        store: The store of the layout.
        rows: The rows.
        output: The output folder, which need not exist.
        max_duration: Seconds; longer recordings are not used.
        audio_decoder: Options of the decoder.
        trial: How much of the run is tried.
    """
    wanted = spec.layers
    # The run waits for decoders that hang; the estimate does not.
    audio_decoder = replace(audio_decoder, timeout=min(audio_decoder.timeout, SCAN_SECONDS))
    with closing(audio_decoder.start()) as decoder:
        scan = scan_rows(rows, store.open_index(output), decoder)

    def samples(sampled: Sampled) -> int:
        usable = sampled.duration is not None and sampled.duration <= max_duration
        found = round((sampled.duration or 0) * encoder.sample_rate) if usable else 0
        return found if found >= encoder.input.min_samples else 0

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
        begun, times = _run_trial(encoder, spec, audio_decoder, usable_rows, trial.seconds(known))
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
        weights=weight_bytes(encoder.model),
        memory=device_memory(encoder.device),
    )


def _bytes(
    encoder: Encoder, spec: FeatureSpec, store: type[Store], scan: Scan, lengths: Sequence[int]
) -> tuple[float, float]:
    """Return bytes per recording, and further bytes per frame, from the file that one recording would give."""
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


def _run_trial(
    encoder: Encoder,
    spec: FeatureSpec,
    audio_decoder: AudioDecoderOptions,
    rows: Sequence[tuple[Row, int]],
    amount: float,
) -> tuple[float, float]:
    """Extract some recordings without writing them.

    Args:
        encoder, spec, audio_decoder: See `estimate`.
        rows: Rows, and the samples of their recordings.
        amount: Predicted seconds of the trial.

    Returns:
        Seconds until the first recording is done, and the measured time of the others relative to the predicted one.
    """
    longest = max(samples for _, samples in rows)
    while encoder.expected_seconds(longest, spec.layers) > amount and longest // 2 >= encoder.input.min_samples:
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

    def measure(rows: Sequence[Row]) -> tuple[float, float]:
        """Return seconds taken, and seconds predicted."""
        began = time.perf_counter()
        outcomes = list(process_rows(rows, encoder, process, _keep, audio_decoder=audio_decoder, **options))
        taken = time.perf_counter() - began
        return taken, sum(chosen[outcome.row.id] for outcome in outcomes if outcome.reason is None)

    measure(parts[:1])  # one-time costs: libraries, kernels, a cold file
    (first, of_first), (taken, expected) = measure(parts[:1]), measure(parts)
    if taken > first and expected > 2 * of_first:
        return first, (taken - first) / (expected - of_first)
    return 0.0, taken / expected if expected else 1.0


def _keep(row: Row, recording: Recording, made: Transformed) -> Transformed:
    return made


def _noise(encoder: Encoder, samples: int) -> Recording:
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(0)) / 10
    return Recording(waveform, encoder.sample_rate, encoder.sample_rate, 1, ())


def _disk(output: Path) -> tuple[int, int | None, int | None]:
    """Return the block size of the output's disk in bytes, and its free bytes and files; None if not known."""
    there = output.absolute()
    while not there.exists():
        there = there.parent
    try:
        found = os.statvfs(there)
        # Some file systems do not count files.
        return found.f_frsize, shutil.disk_usage(there).free, found.f_favail if found.f_files > 0 else None
    except OSError:
        return 0, None, None
