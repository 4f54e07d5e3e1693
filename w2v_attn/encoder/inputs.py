"""What a model reads: a waveform as it is, through convolutions of its own, or filter banks that are made of it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.encoder.pack import Grid, Pack, window_moments

# Samples that are brought to float64 at once.
BLOCK = 1 << 20
# Samples in a pack, each a window of its own; its blocks are 8192 of them.
SAMPLES = Grid(kernel=1, stride=1, hop=1024, field=1)
# Kaldi's windows of 25 ms every 10 ms, at 16 kHz, as the feature extractor of these models has them.
WINDOW, WINDOW_HOP = 400, 160


class Input(Protocol):
    """How a waveform becomes what a model reads. hop: samples from one of its frames to the next."""

    hop: int
    least_samples: int

    def count_frames(self, samples: int) -> int:
        """Frames that the model makes of so many samples."""
        ...

    def prepare(self, waveform: Tensor) -> Tensor:
        """[samples], float32 at least -> what the model reads of this recording."""
        ...

    def prepare_together(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """The same for each of several, of one device and dtype, in launches that do not grow with their number."""
        ...


class Samples:
    """The waveform itself, [samples], normalised over its whole length where the checkpoint wants it."""

    def __init__(self, config: Any, *, do_normalize: bool):
        self._grid = Grid.of_config(config)
        self._do_normalize = do_normalize
        self.hop = self._grid.hop
        self.least_samples = least_samples(config)

    def count_frames(self, samples: int) -> int:
        """See `Input`."""
        return self._grid.count_frames(samples)

    def prepare(self, waveform: Tensor) -> Tensor:
        """See `Input`."""
        return standardize(waveform) if self._do_normalize else waveform

    def prepare_together(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Input`."""
        return standardize_together(waveforms) if self._do_normalize else list(waveforms)


class FilterBanks:
    """Logarithms of mel filter banks, two windows side by side, [T, 160]: what Wav2Vec2-BERT reads.

    extractor: the checkpoint's, of transformers.
    """

    def __init__(self, extractor: Any, *, do_normalize: bool):
        self._extractor = extractor
        self._do_normalize = do_normalize
        self.hop = WINDOW_HOP * extractor.stride
        self.least_samples = WINDOW + WINDOW_HOP * (extractor.stride - 1)

    def count_frames(self, samples: int) -> int:
        """See `Input`."""
        return max((samples - WINDOW) // WINDOW_HOP + 1, 0) // self._extractor.stride

    def prepare(self, waveform: Tensor) -> Tensor:
        """See `Input`. A last window without a neighbour is left out; stock pads it and masks it."""
        features = self._extractor(
            waveform.float().cpu().numpy(),
            sampling_rate=self._extractor.sampling_rate,
            pad_to_multiple_of=None,
            do_normalize_per_mel_bins=self._do_normalize,
            return_tensors="np",
        )["input_features"][0]
        return torch.as_tensor(features, dtype=waveform.dtype, device=waveform.device)

    def prepare_together(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Input`; but for the launches, for these are made on the CPU."""
        return [self.prepare(waveform) for waveform in waveforms]


def input_of(checkpoint: Checkpoint, config: Any) -> Input:
    """What a model with this config reads, prepared as a checkpoint says."""
    if checkpoint.filter_banks is not None:
        return FilterBanks(checkpoint.filter_banks, do_normalize=checkpoint.do_normalize)
    return Samples(config, do_normalize=checkpoint.do_normalize)


def least_samples(config: Any) -> int:
    """Samples of the shortest waveform that gives a frame: what one frame of the convolutions sees."""
    grid = Grid.of_config(config)
    # SEW pools pairs of frames before its blocks: it needs two.
    return grid.field + (getattr(config, "squeeze_factor", 1) - 1) * grid.hop


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
