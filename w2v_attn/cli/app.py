"""`w2v-attn`: composes the configuration from the command line, runs one command, and reports wrong requests."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from w2v_attn import __version__, folders, start_and_end
from w2v_attn.cli.commands import COMMANDS
from w2v_attn.cli.process import DONE, INTERRUPTED, TERMINATED, WRONG_REQUEST, need

if TYPE_CHECKING:
    from w2v_attn.cli.arguments import Arguments


COMMANDS_WITHOUT_MODEL = ("convert",)
# The modules that take most of the start-up time of the other commands.
MODEL_MODULES = ("transformers.models.auto.modeling_auto", "w2v_attn.patching.replace")
# Command -> the extra that it needs, and the modules of that extra.
EXTRAS = {
    "finetune": ("finetune", "accelerate", "jiwer", "matplotlib", "tensorboard"),
    "evaluate": ("finetune", "jiwer", "matplotlib"),
}

USAGE = """\
w2v-attn: wav2vec 2.0's self-attention as a layer of its own, inside any pretrained encoder.

  w2v-attn extract     compute features of audio, as one file per recording or in shards
  w2v-attn convert     write features in another layout: selected, pooled, in half precision
  w2v-attn finetune    train an encoder on your recordings; the result is a Hugging Face folder
  w2v-attn transcribe  turn recordings into text with a fine-tuned checkpoint
  w2v-attn evaluate    measure the errors of a fine-tuned checkpoint on labelled recordings
  w2v-attn load        load a checkpoint and report what it is; convert it
  w2v-attn verify      compare our implementation with stock transformers, stage by stage
  w2v-attn benchmark   time the layer, the encoder and the commands against their peers

  w2v-attn COMMAND --help       the keys of a command, with examples
  w2v-attn COMMAND --help KEY   one of them
  w2v-attn completion SHELL     completion for bash, zsh or fish
  w2v-attn --version

Try it: `w2v-attn extract` runs without network on the bundled speech and checkpoint."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 some inputs failed, 2 wrong request, 130/143 interrupted.

    Args:
        argv: The command and what is behind it; None: those of the process.

    Raises:
        BrokenPipeError: the reader of its output has gone; see `start_and_end.run_and_exit`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(DONE if arguments else WRONG_REQUEST)
    if arguments[0] == "--version":
        print(f"w2v-attn {__version__}")
        sys.exit(DONE)
    command, *words = arguments
    if command in ("completion", "-sc", "--shell-completion"):
        sys.exit(_complete(words))
    if command not in COMMANDS:
        print(f"{_explain_command(command)}\n\n{USAGE}", file=sys.stderr)
        sys.exit(WRONG_REQUEST)
    sys.exit(_run(command, words))


def _complete(words: Sequence[str]) -> int:
    """Print a shell's completion script, or what a command line can be completed to."""
    from w2v_attn.cli.completion import answer

    text, known = answer(words)
    print(text, file=sys.stdout if known else sys.stderr)
    return DONE if known else WRONG_REQUEST


def _explain_command(command: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(command, COMMANDS, 1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(COMMANDS)}"
    return f"there is no command {command}: {hint}"


def _run(command: str, words: list[str]) -> int:
    """Read the words behind a command, and run it or show its help; report a wrong request without a traceback."""
    from w2v_attn.cli.arguments import WrongArguments, read_arguments

    try:
        arguments = read_arguments(command, words)
    except WrongArguments as error:
        print(error, file=sys.stderr)
        return WRONG_REQUEST
    if arguments.has("--version"):
        print(f"w2v-attn {__version__}")
        return DONE
    if arguments.has("--shell-completion", "-sc"):
        return _complete(arguments.overrides)
    if arguments.has("--help", "-h"):
        return _show_help(command, arguments)
    return _compose_and_call(command, words, arguments)


def _show_help(command: str, arguments: "Arguments") -> int:
    """Print the help of a command, or what some of its keys are."""
    from w2v_attn.cli.command_keys import keys_of
    from w2v_attn.cli.help import command_help, explain_topic

    keys = keys_of(command, arguments.config_dirs)
    if not arguments.help_topics:
        if not arguments.overrides:  # without Hydra, which imports slowly
            print(command_help(keys))
            return DONE
        from w2v_attn.cli.composed_values import changed_values

        _register_resolvers()
        try:
            print(command_help(keys, changed_values(command, arguments.overrides)))
        except _wrong_overrides() as error:
            print(_explain(command, arguments.overrides, error), file=sys.stderr)
            return WRONG_REQUEST
        return DONE
    code = DONE
    for topic in arguments.help_topics:
        text, known = explain_topic(topic, keys)
        print(text, file=sys.stdout if known else sys.stderr)
        code = code if known else WRONG_REQUEST
    return code


def _compose_and_call(command: str, words: Sequence[str], arguments: "Arguments") -> int:
    """Compose the configuration of a command with Hydra, and run it."""
    import hydra

    _register_resolvers()
    # Hydra turns every error into exit code 1 unless HYDRA_FULL_ERROR makes it raise them.
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    wants_traceback = full_error == "1"
    codes: list[int] = []
    process_id = os.getpid()
    broken_pipes: list[BrokenPipeError] = []

    def task(config: Any) -> None:
        in_sweep = _name_job(command, words, arguments)
        try:
            code = _checked(command, config, wants_traceback)
        except BrokenPipeError as error:  # Hydra would report it
            broken_pipes.append(error)
            code = start_and_end.BROKEN_PIPE
        if os.getpid() != process_id and code != DONE:
            raise JobEnded(code)  # Hydra does not return the result of a job in another process
        codes.append(code)
        if broken_pipes or (in_sweep and code in (INTERRUPTED, TERMINATED)):
            raise KeyboardInterrupt  # start no other job of the sweep

    os.environ["HYDRA_FULL_ERROR"] = "1"
    program, sys.argv = sys.argv, [f"w2v-attn {command}", *arguments.flags, *arguments.overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(folders.find("conf")), config_name=command)(task)()
    except JobEnded as ended:
        codes.append(ended.code)
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    except _wrong_overrides() as error:
        if wants_traceback:
            raise
        print(_explain(command, words, error), file=sys.stderr)
        return WRONG_REQUEST
    finally:
        sys.argv = program
        os.environ["HYDRA_FULL_ERROR"] = full_error or "0"
    if broken_pipes:
        raise broken_pipes[0]
    return max(codes, default=DONE)  # --cfg runs no task


class JobEnded(Exception):  # noqa: N818 - the job may have done most of its work
    """A job of a sweep in another process ended with a code other than 0. Hydra's launchers raise the first one."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"exit code {self.code}"


def _name_job(command: str, words: Sequence[str], arguments: "Arguments") -> bool:
    """Return whether this is a job of a sweep; set sys.argv to the command that runs this job alone, as it is typed."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    settings = HydraConfig.get()
    in_sweep = settings.mode == RunMode.MULTIRUN
    flags = [flag for flag in arguments.flags if flag not in ("-m", "--multirun")]
    # Not resolved: reading an entry would remove the backslash before the literal ${ of a name.
    overrides: Any = OmegaConf.to_container(settings.overrides.task, resolve=False)
    sys.argv = [f"w2v-attn {command}", *((*flags, *overrides) if in_sweep else words)]
    return in_sweep


def _register_resolvers() -> None:
    """Register `${bundled:NAME}`, the path of a bundled file or folder, and `${pairs:a=b&c=d}`, a dictionary."""
    from urllib.parse import parse_qsl

    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("bundled", lambda name: str(folders.find("data") / name), replace=True)
    OmegaConf.register_new_resolver("pairs", lambda text: OmegaConf.create(dict(parse_qsl(text, True))), replace=True)


def _wrong_overrides() -> tuple[type[Exception], ...]:
    """Return the errors of Hydra that a user can cause."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return HydraException, OmegaConfBaseException, ValueError


def _checked(command: str, config: Any, wants_traceback: bool) -> int:
    """Run a command on a composed configuration; report an error that a user can cause without a traceback."""
    from omegaconf import OmegaConf

    from w2v_attn.cli.hints import hints

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        print(
            f"no value for {', '.join(missing)}: give {missing[0]}=VALUE. See w2v-attn {command} --help",
            file=sys.stderr,
        )
        return WRONG_REQUEST
    _log_to_stderr()
    try:
        return _call(command, config)
    except KeyboardInterrupt:  # before the run began
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:  # the class of all errors that a user can cause; HYDRA_FULL_ERROR=1 shows the traceback
        if wants_traceback:
            raise
        print(f"{error}{hints(sys.argv[1:], error)}", file=sys.stderr)
        return WRONG_REQUEST


def _call(command: str, config: Any) -> int:
    """Import the modules of a command and run it."""
    if command in EXTRAS:
        need(*EXTRAS[command])
    if command not in COMMANDS_WITHOUT_MODEL:
        start_and_end.import_without_gc(*MODEL_MODULES)
    return import_module(f"w2v_attn.cli.{command}").run(config)


def _log_to_stderr() -> None:
    """Log warnings to standard error, one per line, with the time where that is not a terminal."""
    import logging

    at = "" if sys.stderr.isatty() else "%(asctime)s "
    form = f"{at}%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)


def _explain(command: str, words: Sequence[str], error: Exception) -> str:
    """Return what is wrong with an override, in one line where it is a key or a sweep."""
    from w2v_attn.cli.arguments import KEY
    from w2v_attn.cli.command_keys import keys_of
    from w2v_attn.cli.hints import hints
    from w2v_attn.cli.wrong_keys import explain_key

    text = str(error).split("Config search path")[0].strip()
    unknown = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", text)
    if unknown:
        names = [found["name"] for word in words if (found := KEY.fullmatch(word)) is not None]
        wrong = unknown[2] or next((name for name in names if unknown[1] in name), unknown[1])
        return explain_key(wrong, keys_of(command))
    if added := re.search(r"An item is already at '([^']+)'", text):
        return f"{added[1]} is a key already: write {added[1]}=VALUE, without +"
    if swept := re.search(
        r"Sweep parameters '([^']+)' requires --multirun|Ambiguous value for argument '([^']+)'", text
    ):
        given = swept[1] or swept[2]
        return f"{given}: expected one value. Several are a sweep, one run for each: add --multirun"
    return f"{text}{hints(words, text)}\nSee w2v-attn {command} --help"
