"""Which folder stands under a name, and what to say where it cannot be written."""

import errno
from pathlib import Path

from w2v_attn.runs.outcomes import FATAL_ERRORS, RunError


class Place:
    """Which folder stands under a name."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._found = self._find()

    def check(self) -> None:
        """Raises RunError where it is not the one it was: its disk is gone, and another folder shows."""
        try:
            found = self._find()
        except OSError as error:
            raise RunError(f"{self._folder} is gone: {error.strerror}") from error
        if found != self._found:
            raise RunError(f"{self._folder} is another folder than at the start: was its disk unmounted?")

    def _find(self) -> tuple[int, int]:
        found = self._folder.stat()
        return found.st_dev, found.st_ino


def cannot_write(output: Path, error: OSError) -> Exception:
    """The request is wrong where it names a folder that cannot be written; a full disk can be mended."""
    text = f"cannot write to {output}: {error.strerror or error}"
    wrong = error.errno in (errno.EROFS, errno.ENOTDIR) or error.errno not in FATAL_ERRORS
    return ValueError(f"{text}. Name another output") if wrong else RunError(text)
