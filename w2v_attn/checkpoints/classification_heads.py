"""What the outputs of a classification head mean: their names, and the problem they were trained for.

The names are `config.id2label`, the problem is `config.problem_type`; many checkpoints leave the latter out.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from w2v_attn.checkpoints.checkpoint_error import CheckpointError

logger = logging.getLogger(__name__)

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
# What people type: transformers' names, or the words that distinguish them.
ABBREVIATIONS = {"single": SINGLE_LABEL, "multi": MULTI_LABEL, **{name: name for name in PROBLEM_TYPES}}
CLASSIFIER, FRAME_CLASSIFIER, X_VECTOR = "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"
# The names that transformers gives to outputs without names.
_UNNAMED = re.compile(r"LABEL_\d+")


def given_problem_type(value: str | None, key: str) -> str | None:
    """Return the problem type that a user named, by transformers' name; None for `auto` and None.

    Raises:
        ValueError: There is no such problem type; the text names the key.
    """
    if value in (None, "auto"):
        return None
    if value not in ABBREVIATIONS:
        raise ValueError(f"{key} must be auto, {', '.join(PROBLEM_TYPES)} (or single, multi), got {value}")
    return ABBREVIATIONS[value]


def problem_type_of(config: Any, *, frames: bool = False, key: str = "problem_type") -> str:
    """Return the problem type of a head.

    Where the config has none, a single output for a recording is a regression, as in transformers' loss: softmax would
    make it 1 whatever the recording. Several outputs are classes of which one is right, as in transformers' pipeline.
    Outputs for frames are independent of each other, as in transformers' examples: such heads are those of speaker
    diarization, where two speakers may speak at the same time.

    Args:
        config: The config of the model.
        frames: Whether the head classifies frames, not recordings.
        key: The option that says it instead of the config, for the error.

    Raises:
        CheckpointError: The config has a problem type that transformers does not have.
    """
    if config.problem_type is None:
        if frames:
            return MULTI_LABEL
        return REGRESSION if config.num_labels == 1 else SINGLE_LABEL
    if config.problem_type not in PROBLEM_TYPES:
        raise CheckpointError(
            f"the config of the checkpoint has problem_type={config.problem_type}, expected one of "
            f"{', '.join(PROBLEM_TYPES)}: correct it there, or say {key}="
        )
    return config.problem_type


def output_names(config: Any) -> list[str]:
    """Return a name for each output of a head, in the order of the outputs; all are different.

    An output that id2label leaves out is called LABEL_ and its number, as in transformers; the second output of a name
    gets its number behind the name.
    """
    given = {int(number): str(name) for number, name in config.id2label.items()}
    outputs = range(config.num_labels)
    names = [given.get(number, f"LABEL_{number}") for number in outputs]
    outside = sorted(set(given) - set(outputs))
    if outside:
        logger.warning(
            "id2label names the outputs %s, but the head has the outputs 0 to %d: those that it does not name are "
            "called LABEL_ and their number",
            ", ".join(map(str, outside)),
            config.num_labels - 1,
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        logger.warning("several outputs are called %s: their numbers are added to their names", ", ".join(twice))
        names = [f"{name} ({number})" if name in twice else name for number, name in enumerate(names)]
    return names


def describe_outputs(config: Any, architecture: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows about the outputs of a classification head; none for other architectures."""
    if not architecture.endswith((CLASSIFIER, FRAME_CLASSIFIER)):
        return
    names = output_names(config)
    unnamed = " (the checkpoint does not name them)" if are_unnamed(names) else ""
    yield "outputs", f"{len(names)}: {joined(names)}{unnamed}"
    if config.problem_type is None:
        meaning = problem_type_of(config, frames=architecture.endswith(FRAME_CLASSIFIER))
        yield "problem type", f"{meaning} (the config has none)"
    else:
        is_known = config.problem_type in PROBLEM_TYPES
        yield "problem type", config.problem_type if is_known else f"{config.problem_type}, which is not known"


def are_unnamed(names: Sequence[str]) -> bool:
    """Return whether a checkpoint does not say what its outputs mean: all are called LABEL_ and a number."""
    return all(_UNNAMED.fullmatch(name) for name in names)


def joined(names: Sequence[str], maximum: int = 12) -> str:
    """Return names separated by commas; of many the first ones and the number of the others."""
    more = f" … and {len(names) - maximum} more" if len(names) > maximum else ""
    return ", ".join(names[:maximum]) + more
