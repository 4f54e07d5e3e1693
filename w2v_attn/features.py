"""The extraction run: rows -> waveforms -> features -> files."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2v_attn import __version__
from w2v_attn.audio.reading import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.layers import check_layers
from w2v_attn.feature_files import feature_path, write_features
from w2v_attn.runs import Batch, Outcome, run, write_failed

logger = logging.getLogger(__name__)

# Seconds of audio, and of waiting, from which it is said how long a recording will take.
LONG, PATIENCE = 300.0, 120.0
# Files do not wait for each other: most of the time a writer waits for the disk.
WRITERS = 4


@dataclass(frozen=True)
class Written:
    """Where the features of a recording are, and the size of the last of their tensors."""

    path: Path
    frames: int
    channels: int


def extract_corpus(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    *,
    layers: Sequence[str],
    max_duration: float,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome[Written]]:
    """Extracts every row into a file of its own below `output`; see `runs.run` for outcomes, failures and interruption.

    Raises:
        ValueError: an unknown layer, before anything is written.
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    wanted = check_layers(layers, encoder.num_layers)

    def process(batch: Batch) -> list[dict[str, Tensor] | ValueError]:
        for row, recording in batch:
            _announce(encoder, row, recording, wanted)
        found = encoder.extract([recording.waveform for _, recording in batch], wanted)
        # Off the GPU at once, for its memory is the next batch's. Copies on a CPU too: `final` can be the very tensor
        # that the last layer is.
        on_cpu = ({name: tensor.to("cpu", copy=True) for name, tensor in features.items()} for features in found)
        return [_checked_finite(features) for features in on_cpu]

    def finish(row: Row, recording: Recording, features: dict[str, Tensor]) -> Written:
        path = feature_path(output, row.id)
        try:
            write_features(path, features, _metadata(encoder, row, recording, features))
        except OSError as error:
            raise write_failed(path, error) from error
        frames, channels = features[wanted[-1]].shape
        return Written(path, frames, channels)

    return run(
        rows,
        output,
        encoder,
        process,
        finish,
        max_duration=max_duration,
        budget=encoder.frame_budget(),
        writers=WRITERS,
        interrupted=interrupted,
    )


def _announce(encoder: Encoder, row: Row, recording: Recording, layers: Sequence[str]) -> None:
    """Says before it begins what a long recording will take."""
    if recording.duration < LONG:
        return
    seconds = encoder.expected_seconds(len(recording.waveform), layers)
    if seconds > PATIENCE:
        logger.warning(
            "%s: %.0f minutes of audio will take about %.0f minutes%s", row.id, recording.duration / 60, seconds / 60,
            "; long=window takes less, and is not exact" if encoder.long.kind == "exact" else "",
        )  # fmt: skip


def _checked_finite(features: dict[str, Tensor]) -> dict[str, Tensor] | ValueError:
    if all(bool(torch.isfinite(tensor).all()) for tensor in features.values()):
        return features
    dtype = _dtype_name(features)
    way_out = "" if dtype in ("float32", "float64") else ": extract with dtype=float32"
    return ValueError(f"its features are not finite in {dtype}{way_out}")


def _metadata(encoder: Encoder, row: Row, recording: Recording, features: dict[str, Tensor]) -> dict[str, str]:
    """What a reader of the file needs to know, as strings, for safetensors holds no other."""
    rates = {name: encoder.frame_rate(name) for name in features}
    return {
        "id": _as_text(row.id),
        "source": _as_text(os.fspath(row.path)),
        "layers": ",".join(features),
        "frame_rate": f"{rates[next(reversed(rates))]:g}",
        **({"frame_rates": json.dumps(rates)} if len(set(rates.values())) > 1 else {}),
        "sample_rate": str(recording.sample_rate),
        "samples": str(len(recording.waveform)),
        "source_rate": str(recording.source_rate),
        "checkpoint": encoder.checkpoint.source,
        **({"language": language} if (language := encoder.checkpoint.language) is not None else {}),
        "dtype": _dtype_name(features),
        "normalized": str(encoder.checkpoint.do_normalize).lower(),
        "flags": "; ".join(recording.flags),
        "version": __version__,
    }


def _as_text(name: str) -> str:
    """A name from the file system, which need not be Unicode, as one that can be written down."""
    return name.encode(errors="replace").decode()


def _dtype_name(features: dict[str, Tensor]) -> str:
    return str(next(iter(features.values())).dtype).removeprefix("torch.")
