"""The line that commands print where the demo checkpoint is used on recordings that are not bundled."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from w2v_attn import folders
from w2v_attn.checkpoints.demo_checkpoint import DEMO_WARNING, is_demo
from w2v_attn.cli.process import is_first
from w2v_attn.corpus.rows import Row


def warn_of_demo(checkpoint: str | None, rows: Iterable[Row]) -> None:
    """Print the line, once for all processes, if one of the rows is not a bundled recording."""
    warn_of_demo_on_paths(checkpoint, (None if row.content is not None else row.path for row in rows))


def warn_of_demo_on_paths(checkpoint: str | None, paths: Iterable[Path | None]) -> None:
    """Print the line, once for all processes, if a path is not bundled; None: a recording without a file."""
    if checkpoint is None or not is_demo(checkpoint) or not is_first():
        return
    bundled = Path(os.path.realpath(folders.find("data")))
    if any(path is None or bundled not in Path(os.path.realpath(path)).parents for path in paths):
        print(
            f"warning: {checkpoint} {DEMO_WARNING}: model=base, or model.checkpoint=HUB_ID_OR_FOLDER", file=sys.stderr
        )
