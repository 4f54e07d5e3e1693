"""`for_hydra`: a value as the shell passed it, written in the grammar of Hydra's command line."""

import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import yaml

from w2v_attn.cli.command_keys import Kind

YES, NO = ("yes", "on", "1"), ("no", "off", "0")


def for_hydra(value: str, kinds: set[Kind], *, sweep: bool = False, source: bool = False) -> str:
    """Return a value in Hydra's grammar.

    What Hydra's grammar gives a meaning keeps it: quoted texts, numbers, null, lists, dictionaries, interpolations, and
    in a sweep the commas between values. Everything else is a text, and is quoted: a name with spaces, = or (. The
    name of a file or folder that exists is a text, whatever it contains.

    Args:
        value: What is behind the first = of an argument.
        kinds: The types of the key's defaults; see `command_keys.Kind`. Empty for an unknown key.
        sweep: Whether the command is a sweep (--multirun).
        source: Whether the key names recordings, which may be a list of names.
    """
    parsed, is_sweep, is_valid = _parse(value)
    if sweep and is_valid and (is_sweep or "${" not in value):
        return value
    if kinds & {"list", "dict"}:
        return _collection(value, kinds, parsed, is_valid and not is_sweep)
    if "bool" in kinds and value.lower() in YES + NO:
        return "true" if value.lower() in YES else "false"
    if kinds == {"bool"} and not is_sweep and not _is_bool(parsed, is_valid):
        raise ValueError("expected true or false")
    may_be_name = source or bool(kinds & {"text", "null", "missing"}) or not kinds
    if may_be_name and os.path.lexists(os.path.expanduser(value)) and not ("null" in kinds and value == "null"):
        if value == "???":  # OmegaConf's sign of a missing value
            return quote("./???")
        return value if is_valid and not is_sweep and _is_text(parsed, value) else quote(value)
    if not is_valid:
        return _list(value) if source and _has_brackets(value) else _quoted_with_interpolations(value)
    if is_sweep:
        return _without_sweep(value, kinds, source)
    if "text" in kinds and isinstance(parsed, bool | int | float) and str(parsed) != value and "(" not in value:
        return quote(value)  # 1e5, 1_000 and true as names
    if isinstance(parsed, str) and not _interpolates(parsed):
        return quote(parsed)
    return value


def quote(text: str) -> str:
    """Return a text as a quoted text of Hydra's, in which $, too, has no meaning."""
    return _quoted(re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text))


def quote_list(texts: Sequence[str]) -> str:
    """Return a list of texts in Hydra's grammar."""
    return f"[{','.join(map(quote, texts))}]"


def split_outside_brackets(text: str) -> list[str]:
    """Return the parts of a text between the commas that are outside of quotes and brackets, without spaces around."""
    parts, depth, inside, part = [], 0, "", ""
    for character in text:
        if inside:
            inside = "" if character == inside else inside
        elif character in "'\"" and not part.strip():
            inside = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not inside and depth <= 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    parts.append(part.strip())
    return [part for part in parts if part]


def _quoted(text: str) -> str:
    """Return a quoted text. Backslashes have a meaning only before a quote and before the end."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)
    escaped = re.sub(r"(\\+)\Z", lambda found: found[1] * 2, escaped)
    return f"'{escaped}'"


def _parse(value: str) -> tuple[Any, bool, bool]:
    """Return what a value means in Hydra's grammar, whether that is several values, and whether it means anything."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"key={value}")
        return override.value(), override.is_sweep_override(), True
    except HydraException:
        return None, False, False


def _is_bool(parsed: Any, is_valid: bool) -> bool:
    """Return whether a value is true, false, null or an interpolation."""
    return is_valid and (parsed is None or isinstance(parsed, bool) or (isinstance(parsed, str) and "${" in parsed))


def _is_text(parsed: Any, value: str) -> bool:
    """Return whether Hydra reads a value as exactly this text."""
    return type(parsed) is str and parsed == value and "${" not in value


def _interpolates(text: str) -> bool:
    """Return whether OmegaConf can read a text that may contain interpolations: ${key}."""
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    if "${" not in text:
        return True
    try:
        parse(text)
    except GrammarParseError:
        return False
    return True


def _quoted_with_interpolations(value: str) -> str:
    """Return a text that Hydra's grammar cannot express otherwise; `${key}` in it keeps its meaning."""
    return _quoted(value) if _interpolates(value) else quote(value)


def _has_brackets(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _collection(value: str, kinds: set[Kind], parsed: Any, is_valid: bool) -> str:
    """Return a list or a dictionary; a single value stays one."""
    if "dict" in kinds:
        return value if is_valid and not parsed else _dictionary(value)
    if is_valid:
        return value
    if value.startswith("[") != value.endswith("]"):
        raise ValueError("a bracket is missing: a list is written [a,b] or a,b")
    return _list(value)


def _list(value: str) -> str:
    """Return a list from a text with or without brackets, whose elements need not be quoted."""
    for written in (value, f"[{value}]"):
        parsed, is_sweep, is_valid = _parse(written)
        if is_valid and not is_sweep and isinstance(parsed, list):
            return written
    inside = value[1:-1] if _has_brackets(value) else value
    return f"[{','.join(_element(part) for part in split_outside_brackets(inside))}]"


def _element(part: str) -> str:
    _, is_sweep, is_valid = _parse(part)
    return part if is_valid and not is_sweep else _quoted_with_interpolations(part)


def _dictionary(value: str) -> str:
    """Return a dictionary that is written as in YAML, for the resolver `pairs`: Hydra's grammar lacks keys like é."""
    try:
        read = yaml.load(value, yaml.BaseLoader)  # in which no and null are texts
    except yaml.YAMLError:
        read = None
    if not isinstance(read, dict) or any(isinstance(part, dict | list) for part in read.values()):
        raise ValueError("expected a dictionary of texts, such as {a: b, c: d}")
    return f"${{pairs:'{urlencode({str(key): str(part) for key, part in read.items()})}'}}"


def _without_sweep(value: str, kinds: set[Kind], source: bool) -> str:
    """Return one value for a text with commas, which in a sweep would be several."""
    if re.match(r"\w+\(", value) and value.endswith(")"):
        return value  # range(1,3), of which Hydra says that it is a sweep
    parts = split_outside_brackets(value)
    if source and all(os.path.lexists(os.path.expanduser(part)) or "://" in part for part in parts):
        return quote_list(parts)
    if "text" not in kinds and all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", part) for part in parts):
        return f"[{value}]" if kinds != {"number"} else value
    return value if kinds and kinds <= {"number", "bool"} else quote(value)
