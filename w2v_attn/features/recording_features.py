"""The features of one recording, read from the disk when they are asked for."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from w2v_attn.features.feature_errors import FeatureSetError, UnknownNameError

# Seconds that a frame's window reaches beyond the next frame's beginning: 400 samples at 16 kHz, less the hop of 320.
WINDOW_OVERLAP = 0.005


class RecordingFeatures(Mapping[str, Tensor]):
    """Name of the layer -> features: [frames, channels], [channels] where they are pooled, [spans, channels] by spans.

    id: as extraction names it. metadata: what extraction wrote about it: frame_rate, samples, checkpoint, …
    Each tensor is read when it is asked for, and is the caller's own.
    """

    def __init__(self, id: str, layers: Iterable[str], metadata: dict[str, str], read: Callable[[str], Tensor]):
        self.id = id
        self.layers = tuple(sorted(layers, key=layer_order))
        self.metadata = metadata
        self._read = read

    def __getitem__(self, layer: str) -> Tensor:
        """Raises UnknownNameError, a KeyError: there is no such layer. DamagedError: the file is damaged."""
        if layer not in self.layers:
            raise UnknownNameError(f"{self.id} has no layer {layer}: it has {', '.join(self.layers)}")
        return self._read(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def times(self, layer: str) -> Tensor:
        """float64 [frames]: the centre of what each frame of a layer hears, in seconds; see `frame_times`.

        Raises:
            FeatureSetError: the features are pooled, so that there are no frames, or their rate is not known.
        """
        return frame_times(len(self[layer]), self.frame_rate(layer))

    def frame_rate(self, layer: str) -> float:
        """Frames a second in a layer. Raises FeatureSetError where there are no frames, or it is not known."""
        if (pooled := self.metadata.get("pooling")) is not None:
            raise FeatureSetError(f"{self.id} is pooled over time (pooling={pooled}): it has no frames")
        rates = json.loads(self.metadata.get("frame_rates", "{}"))
        rate = rates.get(layer, self.metadata.get("frame_rate"))
        if rate is None:
            raise FeatureSetError(f"{self.id} does not say its frame_rate: it was not written by w2v-attn extract")
        return float(rate)


def frame_times(frames: int, rate: float) -> Tensor:
    """float64 [frames]: the centre of the window of each frame, in seconds from the beginning of the recording.

    Frame t of a layer with `rate` frames a second begins at t / rate, and its window reaches 5 ms beyond the beginning
    of the next frame: seven convolutions of 400 samples together, and a hop of 320, at 16 kHz. Its centre is thus
    t / rate + 12.5 ms at 50 frames a second, and + 22.5 ms in SEW's blocks, at 25. Attention mixes in what is further
    away. Wav2Vec2-BERT's windows are 10 ms longer, so that their centres are 5 ms later; behind an adapter, which pads,
    centres are nominal.
    """
    return (torch.arange(frames, dtype=torch.float64) + 0.5) / rate + WINDOW_OVERLAP / 2


def layer_order(layer: str) -> tuple[int, str]:
    """Sorts layers in the order of computation: embed, layer_01 … layer_NN, final; then what else there is."""
    return ({"embed": 0, "final": 2}.get(layer, 1 if layer.startswith("layer_") else 3), layer)
