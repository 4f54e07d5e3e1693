"""Ids as text: a name from the file system can be any bytes, which most layouts cannot hold."""

from w2v_attn.features.errors import FeatureSetError


def is_text(id: str) -> bool:
    """Whether an id is Unicode."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(id: str) -> None:
    """Raises FeatureSetError where an id is not Unicode."""
    if not is_text(id):
        raise FeatureSetError("its name is not Unicode, which this layout needs: rename it, or take layout=mirrored")
