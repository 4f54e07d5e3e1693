"""`load_encoder` and the encoder it returns: waveforms as recorded in, features of chosen layers out."""

import os
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from w2v_attn.encoder.layers import check_layers, recorded
from w2v_attn.pretrained.checkpoints import Checkpoint, load_checkpoint
from w2v_attn.pretrained.replace import replace_attention


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


def find_device(device: str) -> torch.device:
    """ "auto" as a device that is there; any other name as torch knows it.

    Raises:
        ValueError: no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device="{device}" cannot be used here: {reason}. device=auto takes what is there') from error
    return found


class Encoder:
    """A pretrained encoder with our attention.

    model: the transformers model. checkpoint: what it was loaded from. device: where it is.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, backend: str = "auto"):
        self.checkpoint = checkpoint
        self.model: Any = replace_attention(checkpoint.model, backend=backend).to(device).eval()
        self.device = device
        self.config: Any = self.model.config

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms that go in."""
        return self.checkpoint.sample_rate

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of the features."""
        return self.model.dtype

    @property
    def num_layers(self) -> int:
        """Blocks: the highest N of `layer_NN`."""
        return len(self.model.encoder.layers)

    @property
    def hop(self) -> int:
        """Samples from one frame of the convolutions to the next: the product of their strides."""
        return prod(self.config.conv_stride)

    @property
    def least_samples(self) -> int:
        """Samples of the shortest waveform that gives a frame: what one frame of the convolutions sees."""
        samples = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        # SEW pools pairs of frames before its blocks: it needs two.
        return samples + (getattr(self.config, "squeeze_factor", 1) - 1) * self.hop

    def frame_rate(self, layer: str = "final") -> float:
        """Frames a second in this layer."""
        samples = self.hop
        if layer != "final":
            samples *= getattr(self.config, "squeeze_factor", 1)
        elif getattr(self.config, "add_adapter", False):
            samples *= self.config.adapter_stride**self.config.num_adapter_layers
        return self.sample_rate / samples

    def check_waveform(self, waveform: Tensor) -> None:
        """Raises ValueError where this encoder cannot make features of a waveform; the text is the reason."""
        if waveform.dim() != 1:
            raise ValueError(f"a waveform must be [samples], got {list(waveform.shape)}: average the channels first")
        if len(waveform) < self.least_samples:
            raise ValueError(
                f"is too short: {len(waveform)} samples at {self.sample_rate} Hz, "
                f"at least {self.least_samples} are needed"
            )

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
        values = self._prepare(waveform)
        with recorded(self.model, layers) as found:
            final = self.model(values[None]).last_hidden_state
        found["final"] = final
        return {name: found[name][0] for name in layers}

    def _prepare(self, waveform: Tensor) -> Tensor:
        """The input of the model: normalised over its whole length where the checkpoint wants that."""
        waveform = waveform.to(self.device, torch.float64)
        if self.checkpoint.do_normalize:
            waveform = (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)
        return waveform.to(self.dtype)
