"""What ends a fine-tuning run."""


class DataError(ValueError):
    """The data cannot be trained on. The text says what was expected, what was found, and the way out."""


class TrainingError(Exception):
    """Training cannot go on. The last good checkpoint stays, and the text says where."""
