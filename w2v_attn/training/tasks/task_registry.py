"""Which tasks there are: name -> what may be said about it, and what it does. A new one is a line here."""

from typing import Any

from w2v_attn.training.options import ClassificationOptions, CtcOptions
from w2v_attn.training.tasks.classification import Classification
from w2v_attn.training.tasks.ctc import Ctc

TASKS: dict[str, tuple[type, type[Any]]] = {
    Ctc.name: (CtcOptions, Ctc),
    Classification.name: (ClassificationOptions, Classification),
}


def task_class(options: object) -> type[Any]:
    """The task that these options are of."""
    return next(task for kind, task in TASKS.values() if isinstance(options, kind))
