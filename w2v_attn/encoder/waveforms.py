"""What every model that reads waveforms has in common: where it is, and how a waveform becomes its input."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from w2v_attn.encoder import frontend_together
from w2v_attn.encoder.pack import Grid, Pack, window_moments
from w2v_attn.pretrained.checkpoints import Checkpoint
from w2v_attn.pretrained.replace import replace_attention

# Samples that are brought to float64 at once.
BLOCK = 1 << 20
# Samples in a pack, each a window of its own; its blocks are 8192 of them.
SAMPLES = Grid(kernel=1, stride=1, hop=1024, field=1)

# Frames of a batch. On a CPU, for each core: larger ones are not faster; beyond the other, a GPU has nothing to gain.
CORE_BUDGET, MOST_FRAMES = 1600, 65_536


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


def standardize(waveform: Tensor) -> Tensor:
    """[samples] with mean 0 and variance 1, as Hugging Face's feature extractor brings them there; computed in float64.

    Some samples at a time: an hour in float64 would be half a gigabyte, several times.
    """
    mean = waveform.mean(dtype=torch.float64)
    parts = waveform.split(BLOCK)
    variance = torch.stack([(part.double() - mean).square().sum() for part in parts]).sum() / len(waveform)
    deviation = torch.sqrt(variance + 1e-7)
    return torch.cat([((part.double() - mean) / deviation).to(waveform.dtype) for part in parts])


def standardize_together(waveforms: Sequence[Tensor]) -> list[Tensor]:
    """What `standardize` makes of each [samples], for accelerators: no launch is for one of them alone.

    waveforms: of one device and dtype.
    """
    pack = Pack.of(waveforms, SAMPLES)
    mean, variance = (moment.view(-1, 1) for moment in window_moments(pack))
    deviation = torch.sqrt(variance + 1e-7)
    parts = []
    for piece in pack.pieces:
        owners = pack.owners[piece.begin : piece.end]
        samples = pack.windows(piece.begin, piece.end).squeeze(-1).double()
        parts.append(((samples - mean[owners]) / deviation[owners]).to(pack.samples.dtype))
    lengths = [len(waveform) for waveform in waveforms]
    slots = torch.cat(parts).flatten().split([-(-length // SAMPLES.block) * SAMPLES.block for length in lengths])
    return [slot[:length] for slot, length in zip(slots, lengths, strict=True)]


def least_samples(config: Any) -> int:
    """Samples of the shortest waveform that gives a frame: what one frame of the convolutions sees."""
    grid = Grid.of_config(config)
    # SEW pools pairs of frames before its blocks: it needs two.
    return grid.field + (getattr(config, "squeeze_factor", 1) - 1) * grid.hop


class WaveformModel:
    """A pretrained model with our attention, and its waveforms.

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
        """Of the weights and of what comes out."""
        return self.model.dtype

    @property
    def hop(self) -> int:
        """Samples from one frame of the convolutions to the next: the product of their strides."""
        return Grid.of_config(self.config).hop

    @property
    def least_samples(self) -> int:
        """Samples of the shortest waveform that gives a frame."""
        return least_samples(self.config)

    def count_frames(self, samples: int) -> int:
        """Frames that the convolutions make of so many samples."""
        return Grid.of_config(self.config).count_frames(samples)

    def frame_budget(self) -> int:
        """Frames of a batch, over all its recordings, that fit into the memory there is."""
        if self.device.type != "cuda":
            return CORE_BUDGET * torch.get_num_threads()
        free, _ = torch.cuda.mem_get_info(self.device)
        # Widest is a feed-forward; some dozen tensors of a block's own width stand beside it, at most in float32.
        bytes_of_frame = 4 * (2 * self.config.intermediate_size + 12 * self.config.hidden_size)
        return max(1, min(MOST_FRAMES, free // 2 // bytes_of_frame))

    def frame_rate(self, layer: str = "final") -> float:
        """Frames a second in this layer."""
        samples = self.hop
        if layer != "final":
            samples *= getattr(self.config, "squeeze_factor", 1)
        elif getattr(self.config, "add_adapter", False):
            samples *= self.config.adapter_stride**self.config.num_adapter_layers
        return self.sample_rate / samples

    def check_waveform(self, waveform: Tensor) -> None:
        """Raises ValueError where this model cannot read a waveform; the text is the reason."""
        if waveform.dim() != 1:
            raise ValueError(f"a waveform must be [samples], got {list(waveform.shape)}: average the channels first")
        if len(waveform) < self.least_samples:
            raise ValueError(
                f"is too short: {len(waveform)} samples at {self.sample_rate} Hz, "
                f"at least {self.least_samples} are needed"
            )

    def prepare_all(self, waveforms: Iterable[Tensor]) -> Iterable[Tensor]:
        """Each as `prepare` makes it: one when it is asked for on a CPU, all together on accelerators."""
        if not frontend_together.pays(self.device):
            return map(self.prepare, waveforms)
        dtype = torch.promote_types(self.dtype, torch.float32)
        moved = [waveform.to(self.device, dtype) for waveform in waveforms]
        return standardize_together(moved) if self.checkpoint.do_normalize else moved

    def prepare(self, waveform: Tensor) -> Tensor:
        """[samples] as the checkpoint wants it: normalised over its whole length where it does; float32 at least."""
        waveform = waveform.to(self.device, torch.promote_types(self.dtype, torch.float32))
        if self.checkpoint.do_normalize:
            waveform = standardize(waveform)
        return waveform
