"""`keys_of`: the keys and groups of a command with their comments, read from conf/ without Hydra, which is slow."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from w2v_attn import folders

# Of the default value. `section`: has keys below it; `dict`: any keys; `null` and `missing` (???) have no known type.
Kind = Literal["text", "number", "bool", "list", "dict", "section", "null", "missing"]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KINDS: dict[str, Kind] = {"null": "null", "bool": "bool", "int": "number", "float": "number"}


@dataclass(frozen=True)
class Key:
    """A key of a command.

    Attributes:
        name: As on the command line: `output`, `audio_decoder.timeout`.
        default: Its value as it is written in the file.
        kind: The type of the default.
        comment: What the file says about it; empty where it says nothing.
        heading: The heading that it is under; empty where there is none.
    """

    name: str
    default: str
    kind: Kind
    comment: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Option:
    """A choice of a group, with its own comment and keys."""

    name: str
    comment: str
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Group:
    """A group of a command, such as `model`: its choices, and which of them is the default, None where none is."""

    name: str
    default: str | None
    options: dict[str, Option]
    # Its choices set keys of the whole configuration, as those of `experiment` do.
    is_global: bool = False


@dataclass(frozen=True)
class CommandKeys:
    """The keys and groups of a command, in the order of its file."""

    command: str
    keys: tuple[Key, ...]
    groups: dict[str, Group]
    header: str
    template: str

    def names(self) -> list[str]:
        """Return the names of all keys and groups, those of every choice included."""
        named = [key.name for key in self.keys]
        for group in self.groups.values():
            named += [group.name, *(key.name for key in self.of_group(group))]
        return list(dict.fromkeys(named))

    def of_group(self, group: Group) -> list[Key]:
        """Return the keys of a group: those of its default choice, then those that only other choices have."""
        if group.is_global:
            return []
        options = sorted(group.options.values(), key=lambda option: option.name != group.default)
        found: dict[str, Key] = {}
        for option in options:
            for key in option.keys:
                found.setdefault(key.name, key)
        return list(found.values())

    def kinds(self, name: str) -> set[Kind]:
        """Return the types that a key has, in any choice of its group; empty for a key that is not there."""
        kinds: set[Kind] = {key.kind for key in self.keys if key.name == name}
        for group in self.groups.values():
            if not group.is_global:
                kinds |= {key.kind for option in group.options.values() for key in option.keys if key.name == name}
        return kinds


@cache
def keys_of(command: str, more: tuple[Path, ...] = ()) -> CommandKeys:
    """Return the keys and groups of a command.

    Args:
        command: Its name; conf/COMMAND.yaml is its file.
        more: Further folders with groups (Hydra's --config-dir).
    """
    conf = folders.find("conf")
    file = _read(conf / f"{command}.yaml")
    groups = {}
    for entry in file.defaults:
        if isinstance(entry, dict):
            name, default = next(iter(entry.items()))
            if not name.startswith("override "):
                groups[name] = _group(name, default, [conf, *more])
    return CommandKeys(command, tuple(file.keys), groups, file.header, file.template)


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, without the command or the key that it may end with."""
    return re.split(r"\.(?:\s|$)|: (?:w2v-attn|data\.)", text, maxsplit=1)[0]


def _group(name: str, default: str | None, places: Sequence[Path]) -> Group:
    options, is_global = {}, False
    for place in places:
        for path in sorted((place / name).glob("*.yaml")):
            file = _read(path)
            is_global |= file.is_global
            options[path.stem] = Option(path.stem, _comment_of(file), tuple(_inherited(name, file, path)))
    return Group(name, default, options, is_global)


def _comment_of(file: "_File") -> str:
    """Return what a file of a group says about itself: on its top, else behind its first key."""
    if file.comment or not file.keys:
        return file.comment
    first = file.keys[0]
    return first.comment or (first.default if first.kind == "text" else "")


def _inherited(group: str, file: "_File", path: Path) -> Iterator[Key]:
    """Yield the keys of a choice, those of the choices that it is based on included."""
    found: dict[str, Key] = {}
    for entry in file.defaults:
        if isinstance(entry, str) and entry != "_self_" and (base := path.parent / f"{entry}.yaml").exists():
            found |= {key.name: key for key in _inherited(group, _read(base), base)}
    for key in file.keys:
        name = f"{group}.{key.name}"
        comment = key.comment or (found[name].comment if name in found else "")
        found[name] = replace(key, name=name, comment=comment)
    yield from found.values()


@dataclass
class _File:
    """A file of conf/: its keys, its defaults list, the comment on its top, and the help of a command."""

    keys: list[Key]
    defaults: list[Any]
    comment: str
    header: str
    template: str
    is_global: bool


@cache
def _read(path: Path) -> _File:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text, Loader)
    keys: list[Key] = []
    plain: dict[str, Any] = {}
    if isinstance(root, yaml.MappingNode):
        keys = [key for key in _walk(root, lines, "", "") if key.name.split(".")[0] not in ("defaults", "hydra")]
        plain = yaml.load(text, Loader)
    top = []
    for line in lines:
        if not line.startswith("#"):
            break
        top.append(line.lstrip("# ").rstrip())
    is_global = any("@package _global_" in line for line in top)
    comment = " ".join(line for line in top if not line.startswith("@package"))
    helped = plain.get("hydra", {}).get("help", {})
    return _File(
        keys, plain.get("defaults", []), comment, helped.get("header", ""), helped.get("template", ""), is_global
    )


def _walk(node: yaml.MappingNode, lines: list[str], before: str, heading: str) -> Iterator[Key]:
    """Yield the keys of a mapping and of those below it, with the comments behind and above them."""
    for name_node, value in node.value:
        name = f"{before}{name_node.value}"
        line, column = name_node.start_mark.line, name_node.start_mark.column
        above = _above(lines, line, column)
        if len(above) == 1:
            heading = above[0]
        below = isinstance(value, yaml.MappingNode) and not value.flow_style
        mark = name_node.end_mark if below else value.end_mark
        comment = " ".join([*_behind(lines, mark.line, mark.column, column), *(above if len(above) > 1 else [])])
        yield Key(name, "" if below else _source(lines, value), _kind(value), comment, heading)
        if below:
            yield from _walk(value, lines, f"{name}.", heading)


def _kind(node: yaml.Node) -> Kind:
    if isinstance(node, yaml.SequenceNode):
        return "list"
    if isinstance(node, yaml.MappingNode):
        return "dict" if node.flow_style else "section"
    if node.value == "???":
        return "missing"
    if (
        node.tag.endswith(":str")
        and not getattr(node, "style", None)
        and re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", node.value)
    ):
        return "number"  # 1e-4 is a number for OmegaConf, and a text for PyYAML
    return KINDS.get(node.tag.rpartition(":")[2], "text")


def _source(lines: list[str], node: yaml.Node) -> str:
    """Return a value as it is written in its file."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column].strip()
    return " ".join(part.strip() for part in lines[start.line : end.line + 1])


def _behind(lines: list[str], line: int, column: int, indent: int) -> list[str]:
    """Return the comment behind a value, with the lines that continue it."""
    found = re.match(r":?\s*#\s?(.*)", lines[line][column:]) if line < len(lines) else None
    if not found:
        return []
    comment = [found[1].strip()]
    for following in lines[line + 1 :]:
        continued = re.match(r"(\s*)#\s?(.*)", following)
        if not continued or len(continued[1]) <= indent + 2:
            break
        comment.append(continued[2].strip())
    return comment


def _above(lines: list[str], line: int, indent: int) -> list[str]:
    """Return the lines of the comment above a key, after an empty line."""
    comment: list[str] = []
    while line > 0 and (found := re.fullmatch(rf" {{{indent}}}#\s?(.*)", lines[line - 1])):
        comment.insert(0, found[1].strip())
        line -= 1
    return comment if line > 0 and not lines[line - 1].strip() else []
