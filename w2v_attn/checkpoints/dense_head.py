"""Whether weights are those of a dense head, see `dense_classifiers`; transformers is imported only if they are."""

from collections.abc import Iterable
from typing import Any

WEIGHTS = frozenset({"classifier.dense.weight", "classifier.out_proj.weight"})


def has_dense_head(keys: Iterable[str]) -> bool:
    """Return whether weights that a model of transformers has no place for are those of such a head."""
    return WEIGHTS.issubset(keys)


def dense_class_of(config: Any) -> Any:
    """Return the class of a model with such a head."""
    import transformers

    from w2v_attn.checkpoints.dense_classifiers import dense_class

    return dense_class(transformers.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(config)])
