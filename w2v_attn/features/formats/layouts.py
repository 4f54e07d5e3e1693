"""The registry of layouts, and detection of a folder's layout."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from w2v_attn.features.feature_errors import FeatureSetError
from w2v_attn.features.formats.interface import FeatureReader, FeatureWriter


@dataclass(frozen=True)
class Layout:
    """A way to store features.

    Attributes:
        name: Its name on the command line.
        module: Its module in `features.formats`.
        stem: Prefix of its reader and writer classes.
        files: A glob pattern that identifies a folder with this layout.
        library: A library that it needs.
    """

    name: str
    module: str
    stem: str
    files: str
    library: str | None = None

    @property
    def reader(self) -> Callable[[Path], FeatureReader]:
        """The reader class: folder -> reader."""
        return self._part("Reader")

    @property
    def writer(self) -> type[FeatureWriter]:
        """The writer class: folder -> writer."""
        return self._part("Writer")

    def _part(self, kind: str) -> Any:
        if self.library is not None and find_spec(self.library) is None:
            raise FeatureSetError(f"layout={self.name} needs {self.library}: pip install 'w2v_attn[formats]'")
        return getattr(import_module(f"w2v_attn.features.formats.{self.module}"), f"{self.stem}{kind}")


# In the order of detection: a layout comes before those whose pattern would match its files too.
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("shards", "safetensors_shards", "Shards", "index.sqlite"),
        Layout("hdf5", "hdf5", "Hdf5", "features.h5", "h5py"),
        Layout("parquet", "parquet_files", "Parquet", "features-*.parquet", "pyarrow"),
        Layout("zarr", "zarr_folder", "Zarr", "features.zarr", "zarr"),
        Layout("webdataset", "tar_samples", "Webdataset", "features-*.tar"),
        Layout("kaldi", "kaldi", "Kaldi", "metadata.jsonl"),
        Layout("mirrored", "mirrored", "Mirrored", "**/*.safetensors"),
        Layout("npy", "npy", "Npy", "**/metadata.json"),
    )
}


def get_layout(name: str) -> Layout:
    """Return a layout by name. Raises FeatureSetError if there is none."""
    if name not in LAYOUTS:
        raise FeatureSetError(f"layout must be one of {', '.join(LAYOUTS)}, got {name}")
    return LAYOUTS[name]


def find_layout(folder: Path) -> Layout:
    """Return the layout of a folder.

    Raises:
        FeatureSetError: there is no such folder, or it has no known layout.
    """
    if not folder.is_dir():
        raise FeatureSetError(f"there is no folder {folder}: name one that w2v-attn extract or convert wrote")
    for layout in LAYOUTS.values():
        if next(folder.glob(layout.files), None) is not None:
            return layout
    raise FeatureSetError(f"there are no features in {folder}: expected .safetensors files, as w2v-attn extract writes")
