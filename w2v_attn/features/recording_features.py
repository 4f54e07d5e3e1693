"""The stored features of one recording, read on access."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2v_attn.features.feature_errors import FeatureSetError, UnknownNameError

# Seconds by which a frame's window overlaps the next: 400 samples at 16 kHz, less the hop of 320.
WINDOW_OVERLAP = 0.005


class Span(NamedTuple):
    """A part of a recording. start, end: seconds. label: such as a phone; empty if there is none."""

    start: float
    end: float
    label: str = ""


class RecordingFeatures(Mapping[str, Tensor]):
    """A mapping from layer name to features: [frames, channels]; pooled [channels]; pooled by spans [spans, channels].

    Each tensor is read on access, and belongs to the caller.

    Attributes:
        id: The id that extraction gave it.
        layers: Names of its layers, in the order of computation.
        metadata: What extraction wrote about it: frame_rate, samples, checkpoint, …
    """

    def __init__(self, id: str, layers: Iterable[str], metadata: dict[str, str], read: Callable[[str], Tensor]):
        self.id = id
        self.layers = tuple(sorted(layers, key=layer_order))
        self.metadata = metadata
        self._read = read

    def __repr__(self) -> str:
        return f"RecordingFeatures({self.id!r}: {', '.join(self.layers)})"

    def __getitem__(self, layer: str) -> Tensor:
        """Read a layer.

        Raises:
            UnknownNameError: a KeyError: there is no such layer.
            DamagedError: the file is damaged.
        """
        if layer not in self.layers:
            raise UnknownNameError(f"{self.id} has no layer {layer}: it has {', '.join(self.layers)}")
        return self._read(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def times(self, layer: str) -> Tensor:
        """Return float64 [frames]: the centre of each frame's window in seconds; see `frame_times`.

        Raises:
            FeatureSetError: the features are pooled, so there are no frames, or their rate is not known.
        """
        return frame_times(len(self[layer]), self.frame_rate(layer))

    @property
    def spans(self) -> list[Span]:
        """The spans that the features are pooled over, one for each row; empty if they are not pooled by spans."""
        return [Span(*span) for span in json.loads(self.metadata.get("spans", "[]"))]

    def to_pandas(self, layer: str | None = None) -> Any:
        """Return a layer as a pandas DataFrame: a row for each frame, span or vector, and columns 0, 1, … of channels.

        Before them are the columns `start`, `end` and `label` of spans, or `time` of frames, in seconds.

        Args:
            layer: The layer; None: the only one.

        Raises:
            FeatureSetError: pandas is not installed, or `layer` is None and there are several.
        """
        if layer is None:
            if len(self.layers) != 1:
                raise FeatureSetError(f"{self.id} has several layers, {', '.join(self.layers)}: name one")
            layer = self.layers[0]
        features = self[layer]
        if features.dtype == torch.bfloat16:  # numpy has none
            features = features.float()
        table = import_pandas().DataFrame(features.reshape(-1, features.shape[-1]).numpy())
        if spans := self.spans:
            for place, (name, values) in enumerate(zip(Span._fields, zip(*spans, strict=True), strict=True)):
                table.insert(place, name, list(values))
        elif "pooling" not in self.metadata:
            table.insert(0, "time", self.times(layer).numpy())
        return table

    def frame_rate(self, layer: str) -> float:
        """Return the frames per second of a layer. Raises FeatureSetError if it has no frames or no known rate."""
        if (pooled := self.metadata.get("pooling")) is not None:
            raise FeatureSetError(f"{self.id} is pooled over time (pooling={pooled}): it has no frames")
        rates = json.loads(self.metadata.get("frame_rates", "{}"))
        rate = rates.get(layer, self.metadata.get("frame_rate"))
        if rate is None:
            raise FeatureSetError(
                f"{self.id} has no frame_rate in its metadata: it was not written by w2v-attn extract"
            )
        return float(rate)


def import_pandas() -> Any:
    """Return pandas. Raises FeatureSetError if it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise FeatureSetError("a table needs pandas: pip install 'w2v_attn[formats]'") from error
    return pandas


def frame_times(frames: int, rate: float) -> Tensor:
    """Return float64 [frames]: the centre of each frame's window, in seconds from the start of the recording.

    Frame t of a layer with `rate` frames per second begins at t / rate, and its window ends 5 ms after the start of the
    next frame: the seven convolutions see 400 samples, with a hop of 320, at 16 kHz. So its centre is t / rate + 12.5
    ms at 50 frames per second, and + 22.5 ms in SEW's blocks, at 25. Attention mixes in frames further away.
    Wav2Vec2-BERT's windows are 10 ms longer, so their centres are 5 ms later; after an adapter, which pads, centres are
    nominal.
    """
    return (torch.arange(frames, dtype=torch.float64) + 0.5) / rate + WINDOW_OVERLAP / 2


def layer_order(layer: str) -> tuple[int, str]:
    """Return the sort key of a layer in the order of computation: embed, layer_01 … layer_NN, final, others."""
    return ({"embed": 0, "final": 2}.get(layer, 1 if layer.startswith("layer_") else 3), layer)
