"""What is known of a row before the model: its recording, why there is none, or what an earlier run made of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from w2v_attn.audio.read_audio import Recording
from w2v_attn.corpus.rows import Row
from w2v_attn.runs.errors import failure
from w2v_attn.runs.outcomes import Outcome, Settled
from w2v_attn.runs.sources import read_row


class Model(Protocol):
    """What a run must know of a model to feed it; see `encoder.waveforms.WaveformModel`."""

    @property
    def device(self) -> torch.device: ...

    @property
    def sample_rate(self) -> int: ...

    def check_waveform(self, waveform: Tensor) -> None: ...

    def count_frames(self, samples: int) -> int: ...


@dataclass(frozen=True)
class Read:
    """A row and its recording, or why there is none. frames: what the model makes of it.

    settled: what a run before this one made of it; the recording is None where that was not needed.
    """

    row: Row
    recording: Recording | ValueError | None
    frames: int
    settled: Settled[Any] | None = None

    def kept(self) -> Outcome[Any] | None:
        """The outcome of a row that is settled."""
        if (found := self.settled) is None:
            return None
        return Outcome(self.row, found.result, None, found.samples / found.sample_rate, found.flags, kept=True)


class Reader:
    """Reads rows for a model, in any thread. See `pipeline.process_rows` for its arguments."""

    def __init__(
        self,
        model: Model,
        max_duration: float,
        settled: Callable[[Row], Settled[Any] | None],
        decode: Callable[..., Recording],
    ):
        self._model, self._settled = model, settled
        self._read_row = partial(read_row, sample_rate=model.sample_rate, max_duration=max_duration, decode=decode)

    def read(self, row: Row) -> Read:
        """The recording, where it is not settled."""
        if (found := self._settled(row)) is not None:
            return Read(row, None, self._model.count_frames(found.samples), found)
        return self._decode(row)

    def complete(self, read: Read) -> Read:
        """With the recording, for the sake of its neighbours in a batch."""
        return replace(self._decode(read.row), settled=read.settled) if read.settled else read

    def _decode(self, row: Row) -> Read:
        try:
            recording = self._read_row(row)
            self._model.check_waveform(recording.waveform)
        except Exception as error:
            return Read(row, failure(error), frames=0)
        return Read(row, recording, self._model.count_frames(len(recording.waveform)))
