"""The available tasks: name -> options and class. A new task is a line here."""

from typing import Any

from w2v_attn.training.options import ClassificationOptions, CtcOptions
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.training.tasks.ctc import Ctc

TASKS: dict[str, tuple[type, type[Any]]] = {
    Ctc.name: (CtcOptions, Ctc),
    Classification.name: (ClassificationOptions, Classification),
}


def task_class(options: object) -> type[Any]:
    """Return the class of the task that options belong to."""
    return next(task for kind, task in TASKS.values() if isinstance(options, kind))
