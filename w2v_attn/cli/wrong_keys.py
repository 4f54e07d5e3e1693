"""What a key that a command does not have is answered with: our name for it, or the closest one."""

from collections.abc import Iterable
from difflib import SequenceMatcher

from w2v_attn.cli.command_keys import CommandKeys, keys_of
from w2v_attn.cli.commands import COMMANDS
from w2v_attn.cli.former_keys import FORMER_KEYS
from w2v_attn.cli.other_tools import OTHER_TOOLS

# Names that mean something else in a section: training.path is not audio.
GENERAL = frozenset("path file files source list format dev i o r half hub name".split())


def explain_key(wrong: str, keys: CommandKeys) -> str:
    """Return an answer to a key that the command does not have, in one line."""
    if wrong in FORMER_KEYS:
        return f"there is no key {wrong}. Did you mean {FORMER_KEYS[wrong]}? See w2v-attn {keys.command} --help"
    if (answer := of_other_tools(wrong, keys)) is not None:
        return answer
    if wrong in keys.names():
        return f"{wrong}: {_of_another_choice(wrong, keys)}"
    if others := [other for other in COMMANDS if other != keys.command and wrong in keys_of(other).names()]:
        return f"there is no key {wrong}: it is one of {', '.join(others)}. See w2v-attn {keys.command} --help"
    near = closest(wrong, keys)
    section = wrong.rpartition(".")[0]
    siblings = [name for name in keys.names() if name.rpartition(".")[0] == section]
    if near:
        hint = f" Did you mean {' or '.join(near)}?"
    elif section and siblings:
        hint = f" {section} has {', '.join(name.rpartition('.')[2] for name in siblings)}."
    else:
        hint = ""
    return f"there is no key {wrong}.{hint} See w2v-attn {keys.command} --help"


def of_other_tools(wrong: str, keys: CommandKeys) -> str | None:
    """Return what a key of another tool is here, for this command; None where it is unknown."""
    names = set(keys.names())
    last = wrong.rpartition(".")[2]
    for name in (wrong, *([last] if last not in GENERAL else [])):
        for answer in OTHER_TOOLS.get(name, ()):
            key = answer.partition("=")[0].partition(" ")[0]
            if key in names:
                return f"{wrong}: here {answer}"
            if not key:
                return f"{wrong}: {answer.strip()}"
    return None


def closest(wrong: str, keys: CommandKeys) -> list[str]:
    """Return the keys that a wrong one may mean, at most three: of the same last part, or the most similar one."""
    names, last = keys.names(), wrong.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    if same:
        return same[:3]
    best = max(names, key=lambda name: _similarity(wrong, name))
    return [best] if _similarity(wrong, best) >= 0.7 else []


def closest_of(wrong: str, names: Iterable[str]) -> str | None:
    """Return the most similar of some names; None where none is similar."""
    best = max(names, key=lambda name: SequenceMatcher(None, wrong, name).ratio(), default=None)
    return best if best is not None and SequenceMatcher(None, wrong, best).ratio() >= 0.6 else None


def _similarity(wrong: str, name: str) -> float:
    """Return how similar two keys are: as a whole, or in their last parts if both are in the same section."""
    section, _, last = wrong.rpartition(".")
    named_section, _, named_last = name.rpartition(".")
    whole = SequenceMatcher(None, wrong, name).ratio()
    lasts = SequenceMatcher(None, last, named_last).ratio()
    if section == named_section:
        return lasts + 0.05
    return max(lasts, min(whole, 0.69) if lasts < 0.6 else whole)


def _of_another_choice(name: str, keys: CommandKeys) -> str:
    """Return which choices of a group have a key."""
    group = keys.groups[name.partition(".")[0]]
    options = [option.name for option in group.options.values() if any(key.name == name for key in option.keys)]
    return f"a key of {' or '.join(f'{group.name}={option}' for option in options)} only: select that, too"
