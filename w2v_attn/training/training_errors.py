"""Errors that end a fine-tuning run."""

import re


class DataError(ValueError):
    """The data cannot be used. The message says what was expected, what was found and what to do."""


class TrainingError(Exception):
    """Training cannot continue. The last valid checkpoint is kept, and the same command resumes from it."""


def check_expression(key: str, expression: str) -> None:
    """Raise DataError if the value of a key is not a regular expression."""
    try:
        re.compile(expression)
    except re.error as error:
        raise DataError(f"{key}={expression} is not a regular expression: {error}") from error
