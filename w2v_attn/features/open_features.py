# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""`open_features`: a folder of features -> recordings by id, read on access; and a torch Dataset of them."""

import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from w2v_attn.features.conversion_folder import incomplete_reason
from w2v_attn.features.feature_errors import FeatureSetError, UnknownNameError
from w2v_attn.features.formats.interface import FeatureReader
from w2v_attn.features.formats.layouts import find_layout
from w2v_attn.features.recording_features import RecordingFeatures, import_pandas
from w2v_attn.features.recording_names import ids_by_name

logger = logging.getLogger(__name__)

# Searching more ids than this for similar ones takes seconds.
SEARCHED = 20_000


class FeatureDataset(Dataset[tuple[str, Tensor]]):
    """A torch Dataset of (id, features [frames, channels]) of one layer, read on access, in any worker.

    Args:
        features: Id -> layer -> tensor.
        layer: The layer.
        ids: The recordings, in order.
    """

    def __init__(self, features: Mapping[str, Mapping[str, Tensor]], layer: str, ids: Sequence[str]):
        self._features, self._layer, self.ids = features, layer, ids

    def __repr__(self) -> str:
        return f"FeatureDataset({len(self):,} recordings of {self._layer})"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[str, Tensor]:
        id = self.ids[number]
        return id, self._features[id][self._layer]


def pad_batch(items: Sequence[tuple[str, Tensor]]) -> tuple[list[str], Tensor, Tensor]:
    """Return ids, features [B, T, C] padded with zeros, and int64 [B] frames. For `DataLoader(collate_fn=…)`."""
    ids, tensors = zip(*items, strict=True)
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    return list(ids), torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True), lengths


def open_features(folder: str | os.PathLike[str]) -> "FeatureSet":
    """Open the features in a folder, whatever their format; nothing is read before it is asked for.

    Args:
        folder: What `w2v-attn extract` or `w2v-attn convert` wrote.

    Returns:
        A mapping from recording id to a mapping from layer name to tensor: `features[id]["layer_06"]` is [frames,
        channels]. Ids are paths below the audio folder, with `/`.

    Raises:
        FeatureSetError: there are no features in the folder, or the library that reads their format is not installed.
        DamagedError: the index of the format is damaged.

    Examples:
        >>> features = open_features("features")
        >>> features["en-us+m5/00-three.flac"]["final"].shape
        torch.Size([28, 128])
    """
    path = Path(os.path.expanduser(folder))
    layout = find_layout(path)
    reader = layout.reader(path)
    if (missing := incomplete_reason(path, len(reader))) is not None:
        logger.warning("%s: %s", path, missing)
    return FeatureSet(path, layout.name, reader)


class FeatureSet(Mapping[str, RecordingFeatures]):
    """A mapping from id to recording; ids are paths below the audio folder, with `/`.

    It can be pickled, and used in the workers of a DataLoader.

    Attributes:
        folder: The folder.
        layout: The name of its layout.
    """

    def __init__(self, folder: Path, layout: str, reader: FeatureReader):
        self.folder, self.layout, self._reader = folder, layout, reader
        self._by_name: dict[str, tuple[str, ...]] | None = None

    def __repr__(self) -> str:
        return f"FeatureSet({str(self.folder)!r}: {len(self):,} recordings, layout {self.layout})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_by_name": None}  # made again where it is needed

    def __getitem__(self, id: str) -> RecordingFeatures:
        """Open a recording; its tensors are read on access.

        Args:
            id: Its id, or its id without the extension, the folders, or both, if only one recording matches.

        Raises:
            UnknownNameError: a KeyError: there is no recording with this id, or there are several.
            DamagedError: its file is damaged.
        """
        candidates = self._candidates(id)
        if len(candidates) > 1:
            shown = ", ".join(candidates[:5]) + (f" or {len(candidates) - 5:,} others" if len(candidates) > 5 else "")
            raise UnknownNameError(f"{id} could be any of {len(candidates):,} recordings in {self.folder}: {shown}")
        if not candidates:
            raise UnknownNameError(f"there is no recording {id} in {self.folder}{self._hint(str(id))}")
        return self._reader.open(candidates[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader)

    def __len__(self) -> int:
        return len(self._reader)

    def __contains__(self, id: object) -> bool:
        return len(self._candidates(id)) == 1

    def metadata(self, id: str) -> dict[str, str]:
        """Return the metadata of a recording: frame_rate, samples, checkpoint, dtype, …"""
        return self[id].metadata

    def times(self, id: str, layer: str) -> Tensor:
        """Return float64 [frames]: the centre of each frame in seconds; see `recording_features.frame_times`."""
        return self[id].times(layer)

    def as_dataset(self, layer: str, ids: Sequence[str] | None = None) -> FeatureDataset:
        """Return a torch Dataset of (id, features of a layer), of all recordings or of some."""
        return FeatureDataset(self, layer, tuple(self) if ids is None else tuple(ids))

    def to_pandas(self, layer: str | None = None, ids: Sequence[str] | None = None) -> Any:
        """Return a layer of all recordings, or of some, as one pandas DataFrame; it is all in memory.

        Args:
            layer: The layer; None: the only one.
            ids: The recordings, in order; None: all.

        Returns:
            A row for each vector, frame or span: `id`, what `RecordingFeatures.to_pandas` gives, and a column for each
            channel.

        Raises:
            FeatureSetError: see `RecordingFeatures.to_pandas`; or there are no recordings.
        """
        tables = [(one.id, one.to_pandas(layer)) for one in (self[id] for id in (self if ids is None else ids))]
        if not tables:
            raise FeatureSetError(f"{self.folder} has no recordings to make a table of")
        for id, table in tables:
            table.insert(0, "id", id)
        return import_pandas().concat([table for _, table in tables], ignore_index=True)

    def _candidates(self, name: object) -> tuple[str, ...]:
        """Return the ids that a name may mean. The names of all recordings are collected at the first unknown id."""
        if not isinstance(name, str):
            return ()
        if name in self._reader:
            return (name,)
        if self._by_name is None:
            self._by_name = ids_by_name(self)
        return self._by_name.get(name, ())

    def _hint(self, wanted: str) -> str:
        stem = wanted.rpartition("/")[2].partition(".")[0]
        searched = list(self) if len(self) <= SEARCHED else [id for id in self if stem and stem in id][:SEARCHED]
        close = difflib.get_close_matches(wanted, searched, 3, 0.5)
        return f"; did you mean {' or '.join(close)}?" if close else f", which has {len(self):,} others"
