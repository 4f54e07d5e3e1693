"""The bundled folders conf/ and data/: in the package in a wheel, one level up in a checkout or editable install."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find(name: str) -> Path:
    """Return the folder `conf` or `data` of this installation."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
