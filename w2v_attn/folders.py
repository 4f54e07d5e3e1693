"""Where conf/ and data/ are: beside the modules in a wheel, one level up in a checkout or an editable install."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find(name: str) -> Path:
    """The folder `conf` or `data` of this installation."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
