"""`load_encoder` and the encoder it returns: waveforms as recorded in, features of chosen layers out."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.encoder.layers import check_layers, recorded
from w2v_attn.encoder.waveforms import WaveformModel, find_device
from w2v_attn.pretrained.checkpoints import load_checkpoint


def load_encoder(
    checkpoint: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
) -> "Encoder":
    """The encoder of a checkpoint, without its head, with our attention in it.

    checkpoint: a hub id or a local folder. revision: branch, tag or commit, for hub ids.
    dtype: "float32", "float64", "bfloat16" or "float16". device: "auto" (a GPU if there is one) or torch's name of one.
    backend: the attention core, "auto", "explicit" or "fused".

    Raises:
        CheckpointError: see `load_checkpoint`. ValueError: an unknown backend, or a device that is not there.
    """
    loaded = load_checkpoint(checkpoint, revision=revision, dtype=dtype)
    return Encoder(loaded, device=find_device(device), backend=backend)


class Encoder(WaveformModel):
    """A pretrained encoder with our attention: waveforms as recorded in, features of chosen layers out."""

    @property
    def num_layers(self) -> int:
        """Blocks: the highest N of `layer_NN`."""
        return len(self.model.encoder.layers)

    @torch.no_grad()
    def extract(self, waveforms: Sequence[Tensor], layers: Sequence[str] = ("final",)) -> list[dict[str, Tensor]]:
        """For each waveform a dictionary: name of the layer -> features [frames, channels], in the encoder's dtype.

        waveforms: float32 [samples] at `sample_rate`, as recorded; the checkpoint's own normalisation is applied here.
        layers: of `embed`, `layer_01` … `layer_NN`, `final`, or `all`; see `layers.py`.

        What a recording's features are does not depend on the others in the list, nor on its place among them: each
        runs on its own, for GroupNorm's statistics are those of everything it is given.

        Raises:
            ValueError: an unknown layer, or a waveform that is not [samples] or too short.
        """
        wanted = check_layers(layers, self.num_layers)
        waveforms = [torch.as_tensor(waveform) for waveform in waveforms]
        for waveform in waveforms:
            self.check_waveform(waveform)
        return [self._extract_one(waveform, wanted) for waveform in waveforms]

    def _extract_one(self, waveform: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        with recorded(self.model, layers) as found:
            final = self.model(self.prepare(waveform)).last_hidden_state
        found["final"] = final
        return {name: found[name][0] for name in layers}
