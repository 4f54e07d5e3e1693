"""What can be wrong with features on disk."""


class FeatureSetError(ValueError):
    """Features cannot be had as asked for. The text says what was expected, found, and the way out."""


class DamagedError(FeatureSetError):
    """A file is cut short, or is not what it should be."""


class UnknownNameError(FeatureSetError, KeyError):
    """No recording, or no layer, has this name."""

    def __str__(self) -> str:  # KeyError would show the text as a Python literal
        return str(self.args[0])
