"""How labels are written in data: strings, JSON objects and lists; and which cells hold nothing."""

import json
import math
import re
from typing import Any

# What people and spreadsheets write into a cell without a value.
MISSING = frozenset(("", "-", "n/a", "nan", "null"))
TRUTHS = {"true": 1.0, "false": 0.0}


def parsed(label: str) -> dict[str, Any] | list[Any] | None:
    """Return the JSON object or list in a label; None for other strings."""
    if not label.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(label)
    except (ValueError, RecursionError):
        return None


def is_missing(value: object) -> bool:
    """Return whether a cell, or a value in JSON, says that there is none."""
    return value is None or str(value).strip().lower() in MISSING


def is_empty(label: str) -> bool:
    """Return whether a label holds nothing: a cell without a value, or JSON in which every value is missing."""
    found = parsed(label)
    if found is None:
        return is_missing(label)
    return all(map(is_missing, found.values() if isinstance(found, dict) else found))


def number_of(value: object) -> float | None:
    """Return a finite number, also one in a string, or 1 and 0 for true and false; None for other values."""
    try:
        number = TRUTHS.get(str(value).strip().lower())
        number = float(value) if number is None else number  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def has_decimals(label: str) -> bool:
    """Return whether a label is a finite number that is not written as a whole one."""
    is_number = label.strip().lower() not in TRUTHS and number_of(label) is not None
    return is_number and re.fullmatch(r"\s*[+-]?\d+\s*", label) is None
