"""Our encoder."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from torch import Tensor

from w2v_attn.benchmarks.peers.peer import Subject
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.encoder.encoder import Encoder


class Ours:
    """`Encoder.extract` on the whole list; how it batches is its own matter. layer: the one to stop at."""

    batch, quadratic = 1, False

    def __init__(self, layer: str = "final"):
        self.layer = layer
        self.name = "w2v_attn" if layer == "final" else f"w2v_attn, {layer}"

    def prepare(self, subject: Subject) -> None:
        # A copy: our attention is put into it. Waveforms come normalised, for peers do not do that themselves.
        checkpoint = Checkpoint(
            model=deepcopy(subject.model),
            source="random weights",
            folder=Path(),
            missing=(),
            unexpected=(),
            sample_rate=16_000,
            do_normalize=False,
            normalize_source="the benchmark",
        )
        self._encoder = Encoder(checkpoint, device=subject.device)

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [features[self.layer] for features in self._encoder.extract(waveforms, (self.layer,))]
