"""Errors of stored features."""


class FeatureSetError(ValueError):
    """A request for features that cannot be met. The text says what was expected, what was found, and what to do."""


class DamagedError(FeatureSetError):
    """A file that is truncated or damaged."""


class UnknownNameError(FeatureSetError, KeyError):
    """An unknown recording or layer."""

    def __str__(self) -> str:  # KeyError would show the text as a Python literal
        return str(self.args[0])
