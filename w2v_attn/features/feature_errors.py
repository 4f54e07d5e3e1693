"""Errors of features."""

from w2v_attn.run_error import RecordingError


class FeatureSetError(ValueError):
    """A request for features that cannot be met. The text says what was expected, what was found, and what to do."""


class RecordingFeaturesError(FeatureSetError, RecordingError):
    """The features of one recording cannot be made as asked for; its `kind` says why in a word."""


class DamagedError(RecordingFeaturesError):
    """A file that is truncated or damaged."""

    kind = "damaged"


class UnknownNameError(FeatureSetError, KeyError):
    """An unknown recording or layer."""

    def __str__(self) -> str:  # KeyError would show the text as a Python literal
        return str(self.args[0])
