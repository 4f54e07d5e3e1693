"""The extraction run: rows -> waveforms -> features -> files; what a run before this one made of them stays."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from w2v_attn import __version__
from w2v_attn.audio.reading import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.layers import check_layers
from w2v_attn.encoder.long import Long
from w2v_attn.feature_files import FORMAT, feature_path, read_header, write_features
from w2v_attn.pretrained.identity import checkpoint_hash
from w2v_attn.pretrained.replace import core_in_use
from w2v_attn.run_folders import RunFolder, claimed, made_with
from w2v_attn.runs import Batch, Outcome, RunError, Settled, run, source_state, write_failed
from w2v_attn.whole_files import remove_leftovers

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
    about: Mapping[str, object] | None = None,
) -> Iterator[Outcome[Written]]:
    """Extracts every row into a file of its own below `output`; see `runs.run` for outcomes, failures and interruption.

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


def _extract(
    encoder: Encoder,
    rows: Sequence[Row],
    output: Path,
    wanted: tuple[str, ...],
    max_duration: float,
    interrupted: Callable[[], bool],
    about: Mapping[str, object],
) -> Iterator[Outcome[Written]]:
    fingerprint = _fingerprint(encoder, wanted)
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
            store = _Store(encoder, output, wanted, fingerprint, claim)
            outcomes = run(
                rows,
                output,
                encoder,
                partial(_process, encoder, wanted),
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


def _process(encoder: Encoder, wanted: tuple[str, ...], batch: Batch) -> list[dict[str, Tensor] | ValueError]:
    for row, recording in batch:
        _announce(encoder, row, recording, wanted)
    found = encoder.extract([recording.waveform for _, recording in batch], wanted)
    # Off the GPU at once, for its memory is the next batch's. Copies on a CPU too: `final` can be the very tensor
    # that the last layer is.
    on_cpu = ({name: tensor.to("cpu", copy=True) for name, tensor in features.items()} for features in found)
    return [_checked_finite(features) for features in on_cpu]


class _Store:
    """The files of a run: found where they are there and count, written where not."""

    def __init__(
        self,
        encoder: Encoder,
        output: Path,
        wanted: tuple[str, ...],
        fingerprint: Mapping[str, str],
        claim: RunFolder,
    ):
        self._encoder, self._output, self._wanted, self._claim = encoder, output, wanted, claim
        self._identity = {
            "fingerprint": hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest(),
            "checkpoint_sha256": fingerprint["checkpoint"],
        }
        self._removed: list[str] = []  # why; several threads append

    def find(self, row: Row) -> Settled[Written] | None:
        """What a run before this one left of a row, if it counts. One that is damaged or of another source is removed.

        Raises:
            ValueError: it is of another configuration, or of another file than this row's.
            RunError: the folder cannot be read any more.
        """
        path = feature_path(self._output, row.id)
        try:
            stored = read_header(path)
            if stored is None:
                return self._remove(path, "damaged")
        except FileNotFoundError:
            return None
        except OSError as error:
            if isinstance(failure := write_failed(path, error), RunError):
                raise failure from error
            return None  # it cannot be written either, which is then told of this row
        about = stored.metadata
        shapes = [stored.shapes.get(layer, ()) for layer in self._wanted]
        whole = len(stored.shapes) == len(shapes) and all(len(shape) == 2 for shape in shapes)
        if not whole or about.get("fingerprint") != self._identity["fingerprint"]:
            raise ValueError(
                f"{path} holds features of another configuration, of the checkpoint {about.get('checkpoint')}, layers "
                f"{about.get('layers')}, {about.get('dtype')}: name another output"
            )
        state = source_state(row)
        if state is None:
            return None  # it cannot be read, which is then told; what it was may stay
        if about["source_state"] != state:
            if about["source"] != _as_text(os.fspath(row.path)):
                raise ValueError(
                    f"{path} holds features of {about['source']}, and {row.path} has the same id: name another output"
                )
            return self._remove(path, "of another state of their source")
        frames, channels = shapes[-1]
        flags = tuple(about["flags"].split("; ")) if about["flags"] else ()
        return Settled(Written(path, frames, channels), int(about["samples"]), int(about["sample_rate"]), flags)

    def write(self, row: Row, recording: Recording, features: dict[str, Tensor]) -> Written:
        """The features of a row, as a file."""
        path = feature_path(self._output, row.id)
        self._claim.check_there()
        try:
            write_features(path, features, _metadata(self._encoder, row, recording, features) | self._identity)
        except OSError as error:
            raise write_failed(path, error) from error
        frames, channels = features[self._wanted[-1]].shape
        return Written(path, frames, channels)

    def report(self) -> None:
        """Says what was there and did not count."""
        for why, count in Counter(self._removed).items():
            logger.warning("%d files of features were %s: computed again", count, why)

    def _remove(self, path: Path, why: str) -> None:
        self._claim.check_there()
        path.unlink()
        self._removed.append(why)


def _fingerprint(encoder: Encoder, wanted: tuple[str, ...]) -> dict[str, str]:
    """What decides what features are, beyond their last bits."""
    return {
        "format": FORMAT,
        "checkpoint": checkpoint_hash(encoder.checkpoint),
        "language": str(encoder.checkpoint.language),
        "layers": ",".join(wanted),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "long": _words(encoder.long),
    }


def _words(long: Long) -> str:
    overlap = f", {long.overlap:g} s of overlap" if long.kind == "chunks" else ""
    return long.kind if long.kind == "exact" else f"{long.kind} of {long.seconds:g} s{overlap}"


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
        "source_state": recording.source,
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
