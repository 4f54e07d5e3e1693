"""Completion of command lines in bash, zsh and fish: the scripts, and the candidates that they ask for.

A script calls `w2v-attn completion query WORD…` with the words up to the cursor; the last one is to be completed.
"""

import re
from collections.abc import Iterator, Sequence

from w2v_attn.cli.arguments import FLAGS, POSITIONAL, SOURCES
from w2v_attn.cli.command_keys import CommandKeys, Key, first_sentence, keys_of
from w2v_attn.cli.commands import COMMANDS

SHELLS = ("bash", "zsh", "fish")
INSTALL = """\
w2v-attn completion SHELL prints the completion script of bash, zsh or fish. To install it:

  bash   echo 'eval "$(w2v-attn completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(w2v-attn completion zsh)"' >> ~/.zshrc      (after compinit)
  fish   w2v-attn completion fish > ~/.config/fish/completions/w2v-attn.fish"""
# Keys whose values are files or folders, by their last part.
PATHS = frozenset(
    "audio root output segments features layer_weights checkpoint train valid test noises lm lexicon vocabulary".split()
)
FILES = ":files"  # the candidate that asks the shell for the names of files

BASH = r"""_w2v_attn() {
    local words word key value before candidate file i
    COMPREPLY=()
    # bash splits words at = and :, so they are taken from the line.
    mapfile -t words < <(w2v-attn completion split "${COMP_LINE:0:COMP_POINT}")
    word="${words[-1]}"
    [[ "$word" == *=* ]] && key="${word%%=*}=" || key=""
    value="${word#"$key"}"
    while IFS=$'\t' read -r candidate _; do
        if [[ "$candidate" == :files ]]; then
            compopt -o filenames 2> /dev/null
            while IFS= read -r file; do COMPREPLY+=("$file"); done < <(compgen -f -- "$value")
        else
            COMPREPLY+=("${candidate#"$key"}")
            [[ "$candidate" == *[=.] ]] && compopt -o nospace 2> /dev/null
        fi
    done < <(w2v-attn completion query "${words[@]:1}")
    # bash replaces only what is behind the last = or :.
    before="${value%"${value##*[=:]}"}"
    for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]="${COMPREPLY[i]#"$before"}"; done
}
complete -F _w2v_attn w2v-attn"""

ZSH = r"""#compdef w2v-attn
_w2v_attn() {
    local line candidate about
    local -a open closed open_about closed_about
    local files=0
    for line in "${(@f)$(w2v-attn completion query "${(@Q)words[2,CURRENT]}")}"; do
        candidate="${line%%$'\t'*}"
        about="${line#*$'\t'}"
        if [[ "$candidate" == ":files" ]]; then
            files=1
        elif [[ "$candidate" == *[=.] ]]; then
            open+=("$candidate"); open_about+=("$candidate  $about")
        elif [[ -n "$candidate" ]]; then
            closed+=("$candidate"); closed_about+=("$candidate  $about")
        fi
    done
    (( $#open )) && compadd -l -d open_about -S '' -- "${open[@]}"
    (( $#closed )) && compadd -l -d closed_about -- "${closed[@]}"
    if (( files )); then
        compset -P '[^=]#='
        _files
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _w2v_attn w2v-attn"""

FISH = r"""function __w2v_attn
    set -l word (commandline -ct)
    for line in (w2v-attn completion query (commandline -opc)[2..] "$word")
        if test "$line" = ":files"
            set -l value (string replace -r '^[^=]*=' '' -- $word)
            set -l prefix (string sub -l (math (string length -- $word) - (string length -- $value)) -- $word)
            for file in (__fish_complete_path $value)
                echo $prefix$file
            end
        else
            echo $line
        end
    end
end
complete -c w2v-attn -f -a '(__w2v_attn)'"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
REMOVE = {"bash": "complete -r w2v-attn", "zsh": "compdef -d w2v-attn", "fish": "complete -e -c w2v-attn"}


def answer(words: Sequence[str]) -> tuple[str, bool]:
    """Return what `w2v-attn completion` prints for the words behind it, and whether they are right.

    `install=SHELL` and `uninstall=SHELL` are what Hydra's own completion is asked for.
    """
    first, *rest = words or [""]
    if first == "query":
        return "\n".join(f"{word}\t{about}" if about else word for word, about in candidates(rest)), True
    if first == "split":
        return "\n".join(split_line(" ".join(rest))), True
    action, _, shell = first.rpartition("=")
    if shell in SHELLS and action in ("", "install", "uninstall"):
        return (REMOVE if action == "uninstall" else SCRIPTS)[shell], True
    return INSTALL, first in ("--help", "-h")


def split_line(line: str) -> list[str]:
    """Return the words of an unfinished command line, without its quotes and backslashes; the last one may be empty."""
    words, word, quote, escaped = [], "", "", False
    begun = False
    for character in line:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\" and quote != "'":
            escaped = begun = True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "'\"":
            quote, begun = character, True
        elif character.isspace():
            words += [word] if begun or word else []
            word, begun = "", False
        else:
            word, begun = word + character, True
    return [*words, word]


def candidates(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return what the last of some words can be completed to, each with what it is.

    Args:
        words: Those behind `w2v-attn`, the last of which is incomplete and may be empty.
    """
    word = words[-1] if words else ""
    if len(words) < 2:
        named = [(command, keys_of(command).header) for command in COMMANDS]
        named += [("completion", "completion for a shell"), ("--help", "the commands"), ("--version", "the version")]
        return [(name, about) for name, about in named if name.startswith(word)]
    command = words[0]
    if command == "completion":
        return [(shell, "") for shell in SHELLS if shell.startswith(word)]
    if command not in COMMANDS:
        return []
    found = _of_command(keys_of(command), words[1:-1], word)
    return [(name, about) for name, about in found if name == FILES or (name.startswith(word) and name != word)]


def _of_command(keys: CommandKeys, before: Sequence[str], word: str) -> Iterator[tuple[str, str]]:
    """Yield candidates behind a command."""
    name, equals, value = word.partition("=")
    if equals:
        yield from _values(keys, name, value)
        return
    if word.startswith("-"):
        yield from ((flag, "") for flag in FLAGS if flag.startswith("--"))
        return
    given = {other.partition("=")[0] for other in before}
    asks = "--help" in before or "-h" in before
    for key in _keys(keys, before):
        # The keys of a section are offered once it is written.
        section = key.name.rpartition(".")[0]
        if section and not word.startswith(f"{section}.") and not word.startswith(key.name):
            continue
        end = "" if asks else "." if key.kind == "section" else "="
        if key.name not in given:
            yield f"{key.name}{end}", first_sentence(key.comment)
    for group in keys.groups.values():
        if group.name not in given:
            yield (group.name if asks else f"{group.name}="), f"of {', '.join(list(group.options)[:6])} …"
        if not asks and any(key.name.startswith(f"{group.name}.") for key in keys.of_group(group)):
            yield f"{group.name}.", ""
    if keys.command in POSITIONAL and not asks:
        yield FILES, ""


def _keys(keys: CommandKeys, before: Sequence[str]) -> Iterator[Key]:
    """Yield the keys of a command and those of the choices that are given, or of the default ones."""
    yield from keys.keys
    chosen = dict(word.split("=", 1) for word in before if "=" in word)
    for group in keys.groups.values():
        option = group.options.get(chosen.get(group.name, group.default or ""))
        yield from (option.keys if option is not None and not group.is_global else keys.of_group(group))


def _values(keys: CommandKeys, name: str, value: str) -> Iterator[tuple[str, str]]:
    """Yield the values that a key or a group can have."""
    if (group := keys.groups.get(name)) is not None:
        yield from ((f"{name}={option.name}", first_sentence(option.comment)) for option in group.options.values())
        if name == "model" and value not in group.options:
            yield FILES, ""
        return
    if name in SOURCES or name.rpartition(".")[2] in PATHS:
        yield FILES, ""
        return
    key = next((key for key in _keys(keys, []) if key.name == name), None)
    if key is not None:
        yield from ((f"{name}={choice}", "") for choice in choices_of(key))


def choices_of(key: Key) -> list[str]:
    """Return the values of a key that its comment lists, such as `none, mean, statistics (…)`.

    A list counts if the default value is in it, or if it is introduced by `of`.
    """
    if key.kind == "bool":
        return ["true", "false"]
    if key.name == "output_dtype":
        return ["float32", "float16", "bfloat16", "float64"]
    item = r"[\w:]+(?: \([^)]*\))?"
    for found in re.finditer(rf"(of )?({item}(?:(?:, | or |, or ){item})+)(?= …|[.;]|$)", key.comment):
        items = re.split(r", or |, | or ", re.sub(r" \([^)]*\)", "", found[2]))
        if key.default in items or (found[1] and key.kind == "list"):
            return items
    return []
