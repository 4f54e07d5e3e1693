"""The demo checkpoint, `model=tiny`: how it is recognised, and what is said where it is mistaken for a real one."""

import json
import os
from pathlib import Path
from typing import Any

# A field of its config.json. Folders that are fine-tuned from it keep the field.
DEMO_FIELD = "w2v_attn_demo"
DEMO_WARNING = (
    "is the demo checkpoint, trained on synthetic speech alone: its features and texts of other recordings mean "
    "nothing. Choose a real one"
)


def is_demo_config(config: Any) -> bool:
    """Return whether a transformers config is that of the demo checkpoint or of one that was fine-tuned from it."""
    return bool(getattr(config, DEMO_FIELD, False))


def is_demo(checkpoint: str | os.PathLike[str]) -> bool:
    """Return whether a checkpoint, as commands take it, is a local folder with the demo's config.json."""
    path = Path(os.path.expanduser(os.fspath(checkpoint))) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads it reports what is wrong
        return False
    return isinstance(found, dict) and bool(found.get(DEMO_FIELD, False))
