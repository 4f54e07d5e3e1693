"""`read_arguments`: the words behind a command, as flags and overrides of Hydra's.

Positional arguments become the key that they mean, `model=NAME` may be a checkpoint, and values need no quoting.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from w2v_attn.cli.command_keys import CommandKeys, Group, Kind, keys_of
from w2v_attn.cli.hints import hints
from w2v_attn.cli.hydra_grammar import for_hydra, quote, quote_list, split_outside_brackets

# Hydra's flags; the value says whether a word follows: never, always, or perhaps.
NO_VALUE, ONE_VALUE, PERHAPS = 0, 1, 2
FLAGS = {
    "--help": NO_VALUE, "-h": NO_VALUE, "--hydra-help": NO_VALUE, "--version": NO_VALUE, "--resolve": NO_VALUE,
    "--run": NO_VALUE, "-r": NO_VALUE, "--multirun": NO_VALUE, "-m": NO_VALUE, "--shell-completion": NO_VALUE,
    "-sc": NO_VALUE, "--cfg": ONE_VALUE, "-c": ONE_VALUE, "--package": ONE_VALUE, "-p": ONE_VALUE,
    "--config-path": ONE_VALUE, "-cp": ONE_VALUE, "--config-name": ONE_VALUE, "-cn": ONE_VALUE,
    "--config-dir": ONE_VALUE, "-cd": ONE_VALUE, "--experimental-rerun": ONE_VALUE, "--info": PERHAPS, "-i": PERHAPS,
}  # fmt: skip
# Command -> the key that its positional arguments mean; `model` stands for its checkpoint.
POSITIONAL = {
    "extract": "audio",
    "transcribe": "audio",
    "evaluate": "audio",
    "load": "model",
    "verify": "model",
    "convert": "features",
}
# Keys whose values are the same in other tools, whatever their names there.
SAME_VALUE = ("audio", "output", "model.checkpoint", "model.revision", "model.language", "decoder.lm", "seed")
SOURCES = ("audio", "data.train", "data.valid", "data.test")  # keys that accept a list of names
KEY = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<name>[\w$][\w$.-]*(?:/[\w.-]+)*(?:@[\w.:/-]*)?)=(?P<value>.*)", re.DOTALL)
CHECKPOINT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class WrongArguments(ValueError):  # noqa: N818 - what is wrong is not in the program
    """Words that are no arguments of a command. The text says how to write them."""


@dataclass(frozen=True)
class Arguments:
    """The words behind a command.

    Attributes:
        flags: Hydra's flags, with their values.
        overrides: Overrides in Hydra's grammar.
        help_topics: What is asked for behind --help.
    """

    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    help_topics: tuple[str, ...] | None = None

    @property
    def config_dirs(self) -> tuple[Path, ...]:
        """The folders of --config-dir."""
        return tuple(_config_dirs(self.flags))

    def has(self, *flags: str) -> bool:
        """Return whether one of these flags is given."""
        return any(flag in self.flags for flag in flags)


def read_arguments(command: str, words: Sequence[str]) -> Arguments:
    """Return the flags and overrides that the words behind a command mean.

    Raises:
        WrongArguments: a word is neither a flag, nor key=value, nor a file or folder where the command takes one.
    """
    if any(word.endswith("\r") and not any(map(os.path.lexists, (word, word.partition("=")[2]))) for word in words):
        raise WrongArguments("the arguments end with carriage returns: save the script with line ends of Unix (LF)")
    flags, rest, topics = _flags(command, words)
    if topics is not None:
        rest = [word for word in rest if "=" in word]
    keys = keys_of(command, tuple(_config_dirs(flags)))
    sweep = bool({"-m", "--multirun"} & set(flags)) or any(word.lower() == "hydra.mode=multirun" for word in rest)
    overrides: list[str] = []
    positional: list[str] = []
    sources: dict[str, list[str]] = {}
    last_key = ""
    for word in _joined(rest, keys):
        match = KEY.fullmatch(word)
        if match is None or (not match["sign"] and not keys.kinds(match["name"]) and _is_path_with_equals(word, keys)):
            if re.match(r"[~+]+\w", word) and not os.path.lexists(word):
                overrides.append(word)  # a deletion
            elif word.startswith("=") and not os.path.lexists(word):
                raise WrongArguments(f"{word}: expected key=value, without spaces. See w2v-attn {command} --help")
            elif overrides and overrides[-1] == f"{last_key}=":
                raise WrongArguments(f"{last_key}= {word}: expected {last_key}={word}, without spaces")
            else:
                positional.append(word)
            continue
        if match["name"] in SOURCES and not match["sign"]:
            sources.setdefault(match["name"], []).append(match["value"])
        last_key = match["name"]
        overrides += _override(word, match, keys, sweep=sweep)
    if positional:
        overrides += _positional(command, positional, overrides, keys)
    for name, values in sources.items():
        if len(values) > 1:  # the shell has expanded braces
            overrides = [override for override in overrides if not override.startswith(f"{name}=")]
            overrides.append(f"{name}={quote_list([one for value in values for one in _sources_in(value)])}")
    return Arguments(tuple(flags), tuple(overrides), None if topics is None else tuple(topics))


def _sources_in(value: str) -> list[str]:
    """Return the sources that a value names: those in the brackets of a list, else the value itself."""
    if not (value.startswith("[") and value.endswith("]")) or os.path.lexists(value):
        return [value]
    parts = split_outside_brackets(value[1:-1])
    return [part[1:-1] if len(part) > 1 and part[0] in "'\"" and part[-1] == part[0] else part for part in parts]


def _flags(command: str, words: Sequence[str]) -> tuple[list[str], list[str], list[str] | None]:
    """Return Hydra's flags, the other words, and what is asked for behind --help; None where that is not given."""
    flags: list[str] = []
    rest: list[str] = []
    topics: list[str] | None = None
    number = 0
    while number < len(words):
        word = words[number]
        number += 1
        name, equals, value = word.partition("=")
        flag = _full_flag(name)
        if word == "--":
            rest += words[number:]
            break
        if not word.startswith("-") or (flag is None and os.path.lexists(word)):
            rest.append(word)
            if topics is not None and "=" not in word:
                topics.append(word)
        elif flag is None:
            raise WrongArguments(_explain_option(command, words, number - 1))
        elif flag in ("--help", "-h"):
            topics, flags = topics or [], [*flags, flag]
        elif flag == "-i" and _is_input(words[number:]):
            raise WrongArguments(_explain_option(command, words, number - 1))
        elif FLAGS[flag] == NO_VALUE:
            flags.append(flag)
        elif equals:
            flags += [flag, value]
        elif number < len(words) and (FLAGS[flag] == ONE_VALUE or words[number] in INFO_TOPICS):
            flags += [flag, words[number]]
            number += 1
        elif FLAGS[flag] == PERHAPS:
            flags.append(flag)
        else:
            raise WrongArguments(f"{flag} needs a value. See w2v-attn {command} --hydra-help")
    return flags, rest, topics


INFO_TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def _is_input(following: Sequence[str]) -> bool:
    """Return whether -i means input files, as in other tools, rather than Hydra's --info."""
    return bool(following) and following[0] not in INFO_TOPICS and not re.match(r"-|.*=", following[0])


def _full_flag(name: str) -> str | None:
    """Return the flag that is meant, which may be shortened as argparse allows; None where it is no flag."""
    if name in FLAGS:
        return name
    longer = [flag for flag in FLAGS if name.startswith("--") and len(name) > 3 and flag.startswith(name)]
    return longer[0] if len(longer) == 1 else None


def _config_dirs(flags: Sequence[str]) -> list[Path]:
    return [Path(value) for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]


def _explain_option(command: str, words: Sequence[str], at: int) -> str:
    """Return how an option of the form --key value is written here: the whole command with key=value."""
    from w2v_attn.cli.wrong_keys import closest, of_other_tools

    keys, written, number, notes = keys_of(command), list(words[:at]), at, []
    while number < len(words):
        word = words[number]
        number += 1
        if number > at + 1 and (not word.startswith("-") or _full_flag(word.partition("=")[0]) is not None):
            written.append(word)
            continue
        option, equals, value = word.partition("=")
        values = [value] if equals else []
        takes_more = not equals
        while takes_more and number < len(words) and not words[number].startswith("-") and "=" not in words[number]:
            values.append(words[number])
            number += 1
        name = option.lstrip("-").replace("-", "_")
        known = [key for key in keys.names() if key in (name, name.replace("_", "."))]
        if not known and len(name) == 1:
            initial = sorted((key for key in keys.names() if key.startswith(name)), key=len)
            known = initial[:1] if all(key.startswith(initial[0]) for key in initial) else []
        key = known[0] if known else name
        if not known and (note := of_other_tools(name, keys)):
            key = note.removeprefix(f"{name}: here ").partition(" ")[0]
            notes += [] if key in SAME_VALUE else [note]
        elif not known:
            near = closest(name, keys)
            key = near[0] if near else name
            notes += [] if near else [f"there is no key {name}"]
        written.append(f"{key}={','.join(values) or ('true' if 'bool' in keys.kinds(key) else 'VALUE')}")
        if notes:
            break
    option = words[at].partition("=")[0]
    said = f"{option}: options are written key=value"
    return f"{said}; {notes[0]}" if notes else f"{said}: w2v-attn {command} {shlex.join(written)}"


def _joined(words: Sequence[str], keys: CommandKeys) -> list[str]:
    """Return the words with the lists joined that the shell has split: `layers=[final, embed]`, `layers=a, b`."""
    joined: list[str] = []
    for word in words:
        if joined and _is_open(joined[-1], keys) and not KEY.fullmatch(word):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def _is_open(word: str, keys: CommandKeys) -> bool:
    """Return whether a word is the beginning of a list or a dictionary: a bracket is open, or it ends with a comma."""
    match = KEY.fullmatch(word)
    if match is None or os.path.lexists(match["value"]):
        return False
    kinds, value = keys.kinds(match["name"]), match["value"]
    is_list = bool(kinds & {"list", "dict"})
    opens = value[:1] in ("[", "{") and value.count(value[0]) > value.count("]" if value[0] == "[" else "}")
    return (opens and (is_list or "null" in kinds or match["name"] in SOURCES)) or (is_list and value.endswith(","))


def _is_path_with_equals(word: str, keys: CommandKeys) -> bool:
    """Return whether a word such as `a=b.wav` is a file, and `a` neither a key nor a group."""
    return os.path.lexists(word) and word.partition("=")[0] not in keys.groups


def _override(word: str, match: re.Match[str], keys: CommandKeys, *, sweep: bool) -> list[str]:
    """Return an override in Hydra's grammar."""
    sign, name, value = match["sign"] or "", match["name"], match["value"]
    group = keys.groups.get(name)
    if group is not None and not sign:
        return _choice(group, value, keys, sweep=sweep)
    if "/" in name or "@" in name or sign == "~":
        return [word]
    kinds = keys.kinds(name)
    if kinds == {"section"} and not value.startswith("{"):
        below = [key for key in keys.names() if key.startswith(f"{name}.")]
        raise WrongArguments(
            f"{name} is a section, such as {below[0]}=VALUE. See w2v-attn {keys.command} --help {name}"
        )
    if not sign and (_is_in_dictionary(name, keys) or (kinds == {"dict"} and sweep)):
        sign = "++"
    try:
        return [f"{sign}{name}={for_hydra(value, kinds, sweep=sweep, source=name in SOURCES)}"]
    except ValueError as error:
        raise WrongArguments(f"{name}={value}: {error}") from error


def _is_in_dictionary(name: str, keys: CommandKeys) -> bool:
    """Return whether a key is inside of one that may have any keys, such as `names.0`."""
    parents = [name[:at] for at in range(len(name)) if name[at] == "."]
    open_parents: set[Kind] = {"dict"}
    return not keys.kinds(name) and any(
        keys.kinds(parent) & open_parents or parent == "model.config" for parent in parents
    )


def _choice(group: Group, value: str, keys: CommandKeys, *, sweep: bool) -> list[str]:
    """Return the override of a group; a model that is no choice may be a checkpoint.

    Raises:
        WrongArguments: there is no such choice.
    """
    unquoted = value[1:-1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else value
    parts = split_outside_brackets(value) if sweep else [unquoted]
    if value == "null" or re.match(r"\w+\(|\$\{", value) or all(part in group.options for part in parts):
        return [f"{group.name}={value}"]
    if group.name == "model" and all(part in group.options or is_checkpoint(part) for part in parts):
        if any(part in group.options for part in parts):
            raise WrongArguments(f"model={value}: a sweep takes either choices of model or checkpoints, not both")
        return ["model=local", f"model.checkpoint={','.join(map(quote, parts))}"]
    wrong = next(part for part in parts if part not in group.options)
    raise WrongArguments(_explain_choice(group, wrong, keys))


def is_checkpoint(text: str) -> bool:
    """Return whether a text is a hub id, or the path of a folder or file, rather than the name of a choice."""
    return "/" in text or text.endswith(CHECKPOINT_FILES) or text.startswith("~") or os.path.exists(text)


# Group -> choice and key that take a path but can do without.
PATH_KEYS = {"decoder": [("beam_search", "decoder.lm")]}


def _explain_choice(group: Group, wrong: str, keys: CommandKeys) -> str:
    from w2v_attn.cli.former_keys import FORMER_CHOICES
    from w2v_attn.cli.other_tools import OTHER_CHOICES

    near = get_close_matches(wrong, group.options, 1)
    former = {**OTHER_CHOICES, **FORMER_CHOICES}.get(f"{group.name}={wrong}")
    hint = f"Did you mean {former or f'{group.name}={near[0]}'}? " if former or near else ""
    said = f"there is no {group.name} {wrong}. {hint}The choices are {', '.join(group.options)}"
    if group.name == "model":
        return f"{said}; a checkpoint is a hub id such as facebook/wav2vec2-base, a folder or a file"
    missing = [
        (option.name, key.name) for option in group.options.values() for key in option.keys if key.kind == "missing"
    ] or PATH_KEYS.get(group.name, [])
    if missing and re.search(r"[./]", wrong):
        option, key = next((found for found in missing if found[0] == "local"), missing[0])
        return f"{said}; for a path write {group.name}={option} {key}={wrong}"
    return said


def _positional(command: str, words: Sequence[str], overrides: Sequence[str], keys: CommandKeys) -> list[str]:
    """Return the overrides that positional arguments mean.

    Raises:
        WrongArguments: the command takes none, or not so many; or one is neither a path nor anything else.
    """
    name = POSITIONAL.get(command)
    first = words[0]
    if name is None:
        if command == "finetune":
            raise WrongArguments(
                f"{first}: say what it is: data.train={shlex.quote(first)}, data.valid= or data.test= for recordings, "
                f"model= for a checkpoint. See w2v-attn {command} --help"
            )
        raise WrongArguments(f"{first}: expected key=value. See w2v-attn {command} --help")
    key = "model.checkpoint" if name == "model" else name
    if name not in SOURCES and len(words) > 1:
        raise WrongArguments(f"expected one {'checkpoint' if name == 'model' else 'folder'}, got {shlex.join(words)}")
    for word in words:
        _check_positional(command, word, key, keys)
    if any(override.partition("=")[0] in (name, key) for override in overrides):
        raise WrongArguments(f"{key} is given twice: by {first} and by {key}=. Give it once")
    if name in SOURCES:
        return [f"{name}={quote(first) if len(words) == 1 else quote_list(words)}"]
    if name == "model":
        return _choice(keys.groups["model"], first, keys, sweep=False)
    return [f"{name}={quote(first)}"]


def _check_positional(command: str, word: str, key: str, keys: CommandKeys) -> None:
    """Check that a positional argument can be what it stands for."""
    if word in ("help", "?") and not os.path.lexists(word):
        raise WrongArguments(f"there is no file or folder {word}. For the keys: w2v-attn {command} --help")
    named = keys.names()
    if os.path.lexists(os.path.expanduser(word)) or re.search(r"[*?\[{]|^hub:|://", word):
        return
    if key == "model.checkpoint" and (is_checkpoint(word) or word in keys.groups["model"].options):
        return
    if word in named:
        raise WrongArguments(f"{word}: give it a value: {word}=VALUE. See w2v-attn {command} --help {word}")
    if (split := re.fullmatch(r"([\w.]+)[:\s]+(.*)", word)) and split[1] in named:
        raise WrongArguments(f"{word}: options are written key=value: {split[1]}={split[2] or 'VALUE'}")
    if key == "model.checkpoint":
        raise WrongArguments(_explain_choice(keys.groups["model"], word, keys))
    said = f"there is no file or folder {word}. Options are written key=value"
    raise WrongArguments(said + hints([word], said))
