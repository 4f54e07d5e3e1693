"""The files of a run: found where they are there and count, written where not."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from w2v_attn import __version__
from w2v_attn.audio.reading import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.feature_files import feature_path, read_header, write_features, written_size
from w2v_attn.runs.folder import Place
from w2v_attn.runs.outcomes import RunError, Settled, write_failed
from w2v_attn.runs.sources import source_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """Where the features of a recording are, and the size of the last of their tensors."""

    path: Path
    frames: int
    channels: int


class Store:
    """The files of a run: found where they are there and count, written where not."""

    def __init__(
        self,
        encoder: Encoder,
        output: Path,
        wanted: tuple[str, ...],
        fingerprint: Mapping[str, str],
    ):
        self._encoder, self._output, self._wanted, self._place = encoder, output, wanted, Place(output)
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
        self._place.check()
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
        self._place.check()
        path.unlink()
        self._removed.append(why)


def file_size(encoder: Encoder, row: Row, recording: Recording, features: dict[str, Tensor]) -> int:
    """Bytes of the file of a row, before there is a run: with hashes that are as long as those that there will be."""
    identity = dict.fromkeys(("fingerprint", "checkpoint_sha256"), "0" * 64)
    return written_size(features, _metadata(encoder, row, recording, features) | identity)


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
