"""Features as a torch Dataset, and padded batches of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class FeatureDataset(Dataset[tuple[str, Tensor]]):
    """(id, features [frames, channels]) of one layer by number; each is read when it is asked for, in any worker.

    features: id -> layer -> tensor. ids: which, in their order.
    """

    def __init__(self, features: Mapping[str, Mapping[str, Tensor]], layer: str, ids: Sequence[str]):
        self._features, self._layer, self.ids = features, layer, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[str, Tensor]:
        id = self.ids[number]
        return id, self._features[id][self._layer]


def pad_batch(items: Sequence[tuple[str, Tensor]]) -> tuple[list[str], Tensor, Tensor]:
    """Ids, features [B, T, C] with zeros after the end of each, and int64 [B] frames: `DataLoader(collate_fn=…)`."""
    ids, tensors = zip(*items, strict=True)
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    return list(ids), torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True), lengths
