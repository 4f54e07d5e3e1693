"""Model inputs: the waveform itself, for models with convolutions, or the filter banks computed from it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from w2v_attn.checkpoints.encoder_parts import encoder_config
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.processor_files import WAV2VEC2_EPSILON
from w2v_attn.encoder.packed_waveforms import Grid, PackedWaveforms, window_moments

# Samples that are converted to float64 at once.
SAMPLES_PER_CHUNK = 1 << 20
# The grid of packed waveforms when every sample is a frame and a window of its own; a block has 8192 of them.
SAMPLE_GRID = Grid(kernel=1, stride=1, hop=1024, field=1)
# Kaldi's windows of 25 ms every 10 ms at 16 kHz, which the feature extractor of these models uses.
WINDOW, WINDOW_HOP = 400, 160


class Input(Protocol):
    """The conversion of a waveform to what a model takes as input.

    Attributes:
        hop: Samples from one frame to the next.
        min_samples: Samples of the shortest waveform that gives a frame.
    """

    hop: int
    min_samples: int

    def count_frames(self, samples: int) -> int:
        """Return how many frames the model computes from this many samples."""
        ...

    def prepare(self, waveform: Tensor) -> Tensor:
        """Return the model's input for one waveform, [samples] in at least float32."""
        ...

    def prepare_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return the model's input for each waveform.

        The number of kernel launches does not grow with the number of waveforms.

        Args:
            waveforms: [samples] each, all of one device and dtype.
        """
        ...


class Samples:
    """The waveform itself, [samples], normalised over its whole length if the checkpoint requires it."""

    def __init__(self, config: Any, *, do_normalize: bool, epsilon: float = WAV2VEC2_EPSILON):
        self._grid = Grid.of_config(config)
        self._do_normalize, self._epsilon = do_normalize, epsilon
        self.hop = self._grid.hop
        self.min_samples = min_samples(config)

    def count_frames(self, samples: int) -> int:
        """See `Input`."""
        return self._grid.count_frames(samples)

    def prepare(self, waveform: Tensor) -> Tensor:
        """See `Input`."""
        return standardize(waveform, self._epsilon) if self._do_normalize else waveform

    def prepare_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Input`."""
        return standardize_batch(waveforms, self._epsilon) if self._do_normalize else list(waveforms)


class FilterBanks:
    """Log mel filter banks, two windows concatenated to a frame, [T, 160]: the input of Wav2Vec2-BERT.

    Args:
        extractor: The feature extractor of the checkpoint, from transformers.
        do_normalize: Whether each mel bin is normalised over time.
    """

    def __init__(self, extractor: Any, *, do_normalize: bool):
        self._extractor = extractor
        self._do_normalize = do_normalize
        self.hop = WINDOW_HOP * extractor.stride
        self.min_samples = WINDOW + WINDOW_HOP * (extractor.stride - 1)

    def count_frames(self, samples: int) -> int:
        """See `Input`."""
        return max((samples - WINDOW) // WINDOW_HOP + 1, 0) // self._extractor.stride

    def prepare(self, waveform: Tensor) -> Tensor:
        """See `Input`. A last window without a neighbour is left out; transformers pads it and masks it."""
        features = self._extractor(
            waveform.float().cpu().numpy(),
            sampling_rate=self._extractor.sampling_rate,
            pad_to_multiple_of=None,
            do_normalize_per_mel_bins=self._do_normalize,
            return_tensors="np",
        )["input_features"][0]
        return torch.as_tensor(features, dtype=waveform.dtype, device=waveform.device)

    def prepare_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Input`; filter banks are computed on the CPU, one recording at a time."""
        return [self.prepare(waveform) for waveform in waveforms]


def build_input(checkpoint: Checkpoint, config: Any) -> Input:
    """Return the input conversion of a model with this config, with the preprocessing of the checkpoint."""
    if checkpoint.filter_banks is not None:
        return FilterBanks(checkpoint.filter_banks, do_normalize=checkpoint.do_normalize)
    return Samples(encoder_config(config), do_normalize=checkpoint.do_normalize, epsilon=checkpoint.normalize_epsilon)


def min_samples(config: Any) -> int:
    """Return the samples of the shortest waveform that gives a frame: the receptive field of the convolutions."""
    grid = Grid.of_config(config)
    # SEW pools pairs of frames before its blocks: it needs two.
    return grid.field + (getattr(config, "squeeze_factor", 1) - 1) * grid.hop


def standardize(waveform: Tensor, epsilon: float = WAV2VEC2_EPSILON) -> Tensor:
    """Return the waveform, [samples], with mean 0 and variance 1, computed in float64.

    It is chunked, because an hour in float64 would take half a gigabyte several times.

    Args:
        waveform: The waveform.
        epsilon: What is added to its variance.

    Source: `zero_mean_unit_var_norm` of transformers' Wav2Vec2FeatureExtractor; its OmniASRFeatureExtractor.
    """
    mean = waveform.mean(dtype=torch.float64)
    parts = waveform.split(SAMPLES_PER_CHUNK)
    variance = torch.stack([(part.double() - mean).square().sum() for part in parts]).sum() / len(waveform)
    deviation = torch.sqrt(variance + epsilon)
    return torch.cat([((part.double() - mean) / deviation).to(waveform.dtype) for part in parts])


def standardize_batch(waveforms: Sequence[Tensor], epsilon: float = WAV2VEC2_EPSILON) -> list[Tensor]:
    """Return each waveform as `standardize` does, with kernel launches that serve all waveforms at once.

    Args:
        waveforms: [samples] each, all of one device and dtype.
        epsilon: As for `standardize`.
    """
    pack = PackedWaveforms.of(waveforms, SAMPLE_GRID)
    mean, variance = (moment.view(-1, 1) for moment in window_moments(pack))
    deviation = torch.sqrt(variance + epsilon)
    parts = []
    for tile in pack.tiles:
        owners = pack.owners[tile.begin : tile.end]
        samples = pack.windows(tile.begin, tile.end).squeeze(-1).double()
        parts.append(((samples - mean[owners]) / deviation[owners]).to(pack.samples.dtype))
    lengths = [len(waveform) for waveform in waveforms]
    block = SAMPLE_GRID.block
    slots = torch.cat(parts).flatten().split([-(-length // block) * block for length in lengths])
    return [slot[:length] for slot, length in zip(slots, lengths, strict=True)]
