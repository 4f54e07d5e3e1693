"""`w2v-attn COMMAND --help` and `--help KEY`: keys, groups and examples with their comments, in 100 columns."""

import re
import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from w2v_attn.cli.command_keys import CommandKeys, Group, Key, first_sentence
from w2v_attn.cli.reflow import reflow
from w2v_attn.cli.wrong_keys import closest, explain_key

WIDTH = 100
COLUMN = 40  # where comments begin
FLAGS = """\
  --help [KEY]              this text; what one key or group is
  --multirun, -m            a sweep: one run for each of several values, key=a,b
  --cfg job                 the composed configuration, instead of a run
  --hydra-help              Hydra's other flags"""


def command_help(keys: CommandKeys, values: Mapping[str, str] | None = None) -> str:
    """Return the help of a command.

    Args:
        keys: Its keys.
        values: The values of its keys under the overrides that are given beside --help; None: the defaults.
    """
    text = string.Template(keys.template).safe_substitute(
        APP_CONFIG_GROUPS=_groups(keys), CONFIG=f"{_keys(keys, values or {})}\n\nFlags\n{FLAGS}"
    )
    return reflow(text.replace("${hydra.help.header}", keys.header), WIDTH).rstrip()


def explain_topic(topic: str, keys: CommandKeys) -> tuple[str, bool]:
    """Return what a key, a group or one of its choices is, and whether the command has it."""
    name, _, choice = topic.partition("=")
    if (group := keys.groups.get(name)) is not None:
        if choice in group.options:
            return _explain_choice(group, choice, keys), True
        return _explain_group(group, keys), True
    found = _find(name, keys)
    if found is None:
        near = [near for near in closest(name, keys) if near.rpartition(".")[2] == name]
        if len(near) == 1:
            return explain_topic(near[0], keys)
        return explain_key(name, keys), False
    lines = [f"{name}={found.default}" if found.kind != "section" else name]
    if found.comment:
        lines += [*textwrap.wrap(_sentence(found.comment), WIDTH - 2, initial_indent="  ", subsequent_indent="  ")]
    below = [key for key in _all(keys) if key.name.startswith(f"{name}.")]
    lines += _table(below, {}, indent=2)
    if not below:
        lines.append(f"  {_TYPES[found.kind]}")
    of_group = keys.groups.get(name.partition(".")[0])
    if of_group is not None:
        lines += _by_choice(name, of_group)
    lines += _examples(rf"(?<![\w.]){re.escape(name)}[=.]", keys)
    return "\n".join(lines), True


_TYPES = {
    "text": "a text",
    "number": "a number",
    "bool": "true or false",
    "list": "a list: a,b or [a,b]",
    "dict": "a dictionary: {key: value}",
    "null": "null by default: nothing is given",
    "missing": "must be given",
    "section": "",
}


def _find(name: str, keys: CommandKeys) -> Key | None:
    return next((key for key in _all(keys) if key.name == name), None)


def _all(keys: CommandKeys) -> list[Key]:
    return [*keys.keys, *(key for group in keys.groups.values() for key in keys.of_group(group))]


def _groups(keys: CommandKeys) -> str:
    """Return the groups with their choices and keys."""
    lines: list[str] = []
    for group in keys.groups.values():
        choices = f"or {', '.join(name for name in group.options if name != group.default)}"
        lines += _row(f"{group.name}={group.default or 'null'}", choices, 2)
        own = [key for key in keys.of_group(group) if key.kind != "section" and "config." not in key.name]
        own = [_with_choices(key, group) for key in own if key.name != f"{group.name}.kind"]
        lines += _table(own, {}, indent=4)
    return "\n".join(lines) + "\n"


def _with_choices(key: Key, group: Group) -> Key:
    """Return a key whose comment names the choices that have it, if the default one does not."""
    having = [option.name for option in group.options.values() if any(other.name == key.name for other in option.keys)]
    if group.default in having or not having:
        return key
    return replace(key, comment=f"{group.name}={' or '.join(having)}: {key.comment}")


def _keys(keys: CommandKeys, values: Mapping[str, str]) -> str:
    """Return the keys of a command's own file, under their headings."""
    lines = _table(keys.keys, values, indent=2)
    if changed := [key for group in keys.groups.values() for key in keys.of_group(group) if key.name in values]:
        lines += ["", "  Of groups, as given", *_table(changed, values, indent=4)]
    return "\n".join(lines).strip("\n")


def _table(keys: Iterable[Key], values: Mapping[str, str], *, indent: int) -> list[str]:
    """Return keys and their values on the left, comments on the right."""
    lines: list[str] = []
    heading = ""
    for key in keys:
        if key.heading != heading:
            heading = key.heading
            lines += ["", " " * indent + heading]
        inner = indent + (2 if heading else 0)
        if key.kind == "section":
            if key.name.count(".") and not key.comment:
                continue
            lines += ["", *_row(key.name, key.comment, inner)]
        else:
            lines += _row(f"{key.name}={values.get(key.name, key.default)}", key.comment, inner)
    return lines[1:] if lines and not lines[0] and indent > 2 else lines


def _row(left: str, right: str, indent: int) -> list[str]:
    """Return a row of two columns, the right one wrapped; a long left one has a line of its own."""
    left = " " * indent + left
    wrapped = textwrap.wrap(right, WIDTH - COLUMN, break_long_words=False) if right else []
    if len(left) >= COLUMN - 1 and wrapped:
        left_lines = textwrap.wrap(left, WIDTH, initial_indent="", subsequent_indent=" " * (indent + 2))
        left_lines[0] = " " * indent + left_lines[0].lstrip()
        return [*left_lines, *(" " * COLUMN + line for line in wrapped)]
    if not wrapped:
        return [left]
    return [f"{left:<{COLUMN}}{wrapped[0]}", *(" " * COLUMN + line for line in wrapped[1:])]


def _explain_group(group: Group, keys: CommandKeys) -> str:
    lines = [f"{group.name}={group.default or 'null'}", "  a group: select one of its choices"]
    for option in group.options.values():
        lines += _row(f"{group.name}={option.name}", first_sentence(option.comment), 2)
    own = keys.of_group(group)
    lines += ["", "  Its keys", *_table(own, {}, indent=4)] if own else []
    if group.name == "model":
        lines += ["", "  model=HUB_ID, model=FOLDER and model=FILE are checkpoints, as model.checkpoint= is"]
    return "\n".join([*lines, *_examples(rf"(?<![\w.]){group.name}[=.]", keys)])


def _explain_choice(group: Group, choice: str, keys: CommandKeys) -> str:
    option = group.options[choice]
    lines = [f"{group.name}={choice}"]
    lines += textwrap.wrap(_sentence(option.comment), WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, *_table(option.keys, {}, indent=4)])


def _by_choice(name: str, group: Group) -> list[str]:
    """Return the values of a key in the choices of its group, where they differ."""
    values = {option.name: key.default for option in group.options.values() for key in option.keys if key.name == name}
    if len(values) == len(group.options) and len(set(values.values())) == 1:
        return []
    return [line for option, value in values.items() for line in _row(f"{group.name}={option}", value, 4)]


def _examples(pattern: str, keys: CommandKeys) -> list[str]:
    """Return the examples of a command's help that a pattern is found in."""
    found = [line.strip() for line in _example_lines(keys.template) if re.search(pattern, line)]
    return ["", "  Examples", *(reflow(f"    {line}", WIDTH) for line in found)] if found else []


def _example_lines(template: str) -> Sequence[str]:
    section = re.search(r"^Examples\n((?: .*\n?|\n)+?)(?=^\S|\Z)", template, re.M)
    return [line for line in section[1].splitlines() if "w2v-attn" in line] if section else []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
