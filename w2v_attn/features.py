"""The extraction run: rows -> waveforms -> features -> files, one outcome for each row."""

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from w2v_attn import __version__
from w2v_attn.audio.reading import Recording, read_recording
from w2v_attn.corpus import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.layers import check_layers
from w2v_attn.feature_files import feature_path, write_features

LEDGER = "failures.jsonl"
# What ends a run, for the next file would meet it too; other errors of the file system concern one file.
FATAL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTDIR})


class RunError(Exception):
    """The run cannot go on. What was written stays, and the same command takes it up."""


@dataclass(frozen=True)
class Outcome:
    """What became of a row. reason: None where its features are written to `path`, else why not. seconds: of audio."""

    row: Row
    path: Path | None
    reason: str | None
    seconds: float = 0.0
    frames: int = 0
    channels: int = 0
    flags: tuple[str, ...] = ()


def extract_corpus(
    encoder: Encoder, rows: Sequence[Row], output: Path, *, layers: Sequence[str], max_duration: float
) -> Iterator[Outcome]:
    """Extracts every row, and yields what became of it when that is known.

    A row that cannot be used is written to `failures.jsonl` in the output folder, with its reason, and the run goes on.

    Raises:
        ValueError: an unknown layer, before anything is written.
        RunError: the output cannot be written (disk full, gone, read-only).
    """
    wanted = check_layers(layers, encoder.num_layers)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / LEDGER).unlink(missing_ok=True)  # of the run before this one
    except OSError as error:
        raise RunError(f"cannot write to {output}: {error.strerror or error}") from error
    for row in rows:
        outcome = _extract_row(encoder, row, output, wanted, max_duration)
        if outcome.reason is not None:
            _note_failure(output / LEDGER, outcome)
        yield outcome


def _extract_row(encoder: Encoder, row: Row, output: Path, layers: tuple[str, ...], max_duration: float) -> Outcome:
    try:
        recording = read_recording(row.path, sample_rate=encoder.sample_rate, max_duration=max_duration)
        encoder.check_waveform(recording.waveform)
        features = encoder.extract([recording.waveform], layers)[0]
    except ValueError as error:
        return Outcome(row, None, str(error))
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        return Outcome(row, None, "does not fit into memory: cut it into pieces")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in features.values()):
        dtype = _dtype_name(features)
        way_out = "" if dtype in ("float32", "float64") else ": extract with dtype=float32"
        return Outcome(row, None, f"its features are not finite in {dtype}{way_out}")
    path = feature_path(output, row.id)
    try:
        write_features(path, features, _metadata(encoder, row, recording, features))
    except OSError as error:
        if error.errno in FATAL_ERRORS:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        return Outcome(row, None, f"its features cannot be written: {error.strerror or error}")
    frames, channels = features[next(reversed(features))].shape
    return Outcome(row, path, None, recording.duration, frames, channels, recording.flags)


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
        "dtype": _dtype_name(features),
        "normalized": str(encoder.checkpoint.do_normalize).lower(),
        "flags": "; ".join(recording.flags),
        "version": __version__,
    }


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _as_text(name: str) -> str:
    """A name from the file system, which need not be Unicode, as one that can be written down."""
    return name.encode(errors="replace").decode()


def _dtype_name(features: dict[str, Tensor]) -> str:
    return str(next(iter(features.values())).dtype).removeprefix("torch.")


def _note_failure(ledger: Path, outcome: Outcome) -> None:
    line = json.dumps({"id": outcome.row.id, "path": os.fspath(outcome.row.path), "reason": outcome.reason})
    try:
        with ledger.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise RunError(f"cannot write {ledger}: {error.strerror}") from error
