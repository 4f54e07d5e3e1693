"""What ends a fine-tuning run."""

import re


class DataError(ValueError):
    """The data cannot be trained on. The text says what was expected, what was found, and the way out."""


class TrainingError(Exception):
    """Training cannot go on. The last good checkpoint stays, and the text says where."""


def check_expression(key: str, expression: str) -> None:
    """Raises DataError where what stands under this key is no regular expression."""
    try:
        re.compile(expression)
    except re.error as error:
        raise DataError(f"{key}={expression} is no regular expression: {error}") from error
