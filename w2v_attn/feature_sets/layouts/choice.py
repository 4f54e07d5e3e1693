"""Which layouts there are, and which one a folder has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from w2v_attn.feature_sets.errors import FeatureSetError
from w2v_attn.feature_sets.layouts.layout import Reader, Writer
from w2v_attn.feature_sets.layouts.mirrored import MirroredReader, MirroredWriter


@dataclass(frozen=True)
class Layout:
    """A way in which features lie on disk."""

    name: str
    reader: Callable[[Path], Reader]
    writer: Callable[[Path], Writer]


def find_layout(folder: Path) -> Layout:
    """The layout of what is in a folder.

    Raises:
        FeatureSetError: there is no such folder, or nothing in it that is a layout.
    """
    if not folder.is_dir():
        raise FeatureSetError(f"there is no folder {folder}: name one that w2v-attn extract or convert wrote")
    if next(folder.rglob("*.safetensors"), None) is not None:
        return Layout("mirrored", MirroredReader, MirroredWriter)
    raise FeatureSetError(f"there are no features in {folder}: expected .safetensors files, as w2v-attn extract writes")
