"""The command line: what stands on it becomes a configuration, and that becomes one call of a command.

The commands themselves are in `commands`; a request that is wrong is told here.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from w2v_attn import __version__, folders, start_and_end
from w2v_attn.cli.exit_codes import DONE, INTERRUPTED, TERMINATED, WRONG_REQUEST
from w2v_attn.cli.extras import need
from w2v_attn.cli.former_keys import FORMER_CHOICES, FORMER_KEYS

COMMANDS = ("extract", "convert", "finetune", "transcribe", "evaluate", "load", "verify", "benchmark")
WITHOUT_MODEL = ("convert",)
# What takes most of the start of the others.
MODEL = ("transformers.models.auto.modeling_auto", "w2v_attn.patching.replace")
# Command -> the extra without which it cannot be, and modules of that.
EXTRAS = {
    "finetune": ("finetune", "accelerate", "jiwer", "matplotlib", "tensorboard"),
    "evaluate": ("finetune", "jiwer", "matplotlib"),
}
INPUTS = ("audio", "data.train", "data.valid", "data.test")  # keys that name recordings

USAGE = """\
w2v-attn: wav2vec 2.0's self-attention as a layer of its own, inside any pretrained encoder.

  w2v-attn extract     features from audio, a file for each recording or shards of many
  w2v-attn convert     such features in another layout, selected, pooled, in half precision
  w2v-attn finetune    an encoder trained on your recordings, as a Hugging Face folder
  w2v-attn transcribe  what recordings say, by a fine-tuned checkpoint
  w2v-attn evaluate    how often such a checkpoint is wrong on labelled recordings, and where
  w2v-attn load        load a checkpoint and report what it is; save a copy
  w2v-attn verify      stock transformers against ours on the same weights, stage by stage
  w2v-attn benchmark   our layer, the encoder and the commands against their peers

  w2v-attn COMMAND --help    the keys of a command, with examples
  w2v-attn --version

Try it: `w2v-attn extract` runs without network on the speech and the checkpoint that come with the package."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code: 0 done, 1 some inputs failed, 2 wrong request, 130/143 interrupted.

    Raises BrokenPipeError where nobody reads what it prints; see `start_and_end.run`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        sys.exit(DONE if arguments else WRONG_REQUEST)
    if arguments[0] == "--version":
        print(f"w2v-attn {__version__}")
        sys.exit(DONE)
    command, *overrides = arguments
    if command not in COMMANDS:
        print(f"there is no command {command}\n\n{USAGE}", file=sys.stderr)
        sys.exit(WRONG_REQUEST)
    sys.exit(_run(command, overrides))


def _run(command: str, overrides: list[str]) -> int:
    """Composes the configuration of a command and runs it; a wrong request is told in a few lines, without a trace."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers()
    # Hydra turns every error into exit code 1 unless it is told to let them through.
    if (repeated := _repeated(command, overrides)) is not None:
        print(repeated, file=sys.stderr)
        return WRONG_REQUEST
    asked = os.environ.get("HYDRA_FULL_ERROR")
    wants_trace = asked == "1"
    codes: list[int] = []
    here = os.getpid()
    unread: list[BrokenPipeError] = []

    def task(config: Any) -> None:
        is_one_of_a_sweep = _name_job(command, overrides)
        try:
            code = _checked(command, config, wants_trace)
        except BrokenPipeError as error:  # about which Hydra would have words
            unread.append(error)
            code = start_and_end.NOBODY_READS
        if os.getpid() != here and code != DONE:
            raise JobEnded(code)  # what a job returns, Hydra leaves where it ran
        codes.append(code)
        if unread or (is_one_of_a_sweep and code in (INTERRUPTED, TERMINATED)):
            raise KeyboardInterrupt  # no other job begins

    os.environ["HYDRA_FULL_ERROR"] = "1"
    program, sys.argv = sys.argv, [f"w2v-attn {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(folders.find("conf")), config_name=command)(task)()
    except JobEnded as ended:
        codes.append(ended.code)
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if wants_trace:
            raise
        print(_explain(command, overrides, error), file=sys.stderr)
        return WRONG_REQUEST
    finally:
        sys.argv = program
        os.environ["HYDRA_FULL_ERROR"] = asked or "0"
    if unread:
        raise unread[0]
    return max(codes, default=DONE)  # --help and --cfg run no task


class JobEnded(Exception):  # noqa: N818 - it may have done most of its work
    """A job of a sweep in another process ended with another code than 0. Launchers bring the first of them here."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"exit code {self.code}"


def _name_job(command: str, overrides: Sequence[str]) -> bool:
    """Whether this is a job of a sweep. It is known from here on by what it is without the others."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return False
    flags = [part for part in overrides if "=" not in part and part[:1] != "~" and part not in ("-m", "--multirun")]
    sys.argv = [f"w2v-attn {command}", *flags, *settings.overrides.task]
    return True


def _register_resolvers() -> None:
    """What configurations can say beside Hydra's own: `${bundled:speech}`, which comes with the package."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("bundled", lambda name: str(folders.find("data") / name), replace=True)


def _checked(command: str, config: Any, wants_trace: bool) -> int:
    """Runs a command on a composed configuration; what a user can cause is told without a trace."""
    from omegaconf import OmegaConf

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
    except KeyboardInterrupt:  # before there was anything to end in order
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:  # all that a user can cause is one; HYDRA_FULL_ERROR=1 shows where it came from
        if wants_trace:
            raise
        former = _former_choice(sys.argv[1:])
        print(f"{error}\n{former}" if former else error, file=sys.stderr)
        return WRONG_REQUEST


def _call(command: str, config: Any) -> int:
    """Imports what a command is made of, and runs it."""
    if command in EXTRAS:
        need(*EXTRAS[command])
    if command not in WITHOUT_MODEL:
        start_and_end.import_to_stay(*MODEL)
    return import_module(f"w2v_attn.cli.{command}").run(config)


def _log_to_stderr() -> None:
    """Warnings of ours and of the libraries, each a line; with its time where it may go into a file."""
    import logging

    at = "" if sys.stderr.isatty() else "%(asctime)s "
    form = f"{at}%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)


def _repeated(command: str, overrides: list[str]) -> str | None:
    """What to say where recordings are named more than once, of which Hydra would take the last without a word."""
    for key in INPUTS:
        given = [override for override in overrides if override.startswith(f"{key}=")]
        if len(given) > 1:
            return (
                f"{key} is given {len(given)} times: {given[0]} … {given[-1]}. One is expected: a folder, a manifest "
                f"that lists them, or, where the shell took braces for its own, shards in quotes:\n\n"
                f"  w2v-attn {command} '{key}=\"corpus-{{000..123}}.tar\"'\n"
            )
    return None


def _explain(command: str, overrides: list[str], error: Exception) -> str:
    """A wrong override, said so that the next try is right."""
    import difflib
    import re

    text = str(error).split("Config search path")[0].strip()
    unread = getattr(error, "override", None)  # the one that Hydra's grammar stumbled over
    for override in overrides:
        key, equals, value = override.partition("=")
        if (
            key
            and equals
            and (override == unread or override in text)
            and not (key in FORMER_KEYS and "Could not override" in text)
            and not re.fullmatch(r"[\w./:+@%-]*", value, re.ASCII)
        ):
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            return (
                f"{override}: has characters that Hydra reads as its own ( = , ( [ {{ é ~ spaces …).\n"
                f"Quote the value for Hydra, and all of it for the shell:\n\n"
                f"  w2v-attn {command} '{key}=\"{quoted}\"'\n"
            )
    unknown = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", text)
    if unknown:
        wrong = next((o.partition("=")[0].lstrip("+~") for o in overrides if unknown[1] and unknown[1] in o), None)
        wrong = wrong or unknown[2] or unknown[1]
        known = _keys(command)
        close = [FORMER_KEYS[wrong]] if wrong in FORMER_KEYS else difflib.get_close_matches(wrong, known, 1, 0.5)
        hint = f"Did you mean {close[0]}?" if close else f"Known keys: {', '.join(known)}."
        return f"there is no key {wrong}. {hint} See w2v-attn {command} --help"
    return f"{text}\n{_former_choice(overrides)}See w2v-attn {command} --help"


def _former_choice(overrides: list[str]) -> str:
    """A line with the present name of a choice that is given by its former one; empty where none is."""
    return "".join(f"Did you mean {FORMER_CHOICES[given]}?\n" for given in overrides if given in FORMER_CHOICES)


def _keys(command: str) -> list[str]:
    """All keys of a command, as they stand on the command line."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.initialize import initialize_config_dir
    from omegaconf import DictConfig

    def walk(node: DictConfig, before: str) -> list[str]:
        keys = []
        for name in node:
            below = node._get_node(name)
            keys.append(f"{before}{name}")
            if isinstance(below, DictConfig):
                keys += walk(below, f"{before}{name}.")
        return keys

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folders.find("conf")), version_base="1.3"):
        return walk(compose(command), "")
