"""`w2v-attn`: composes the configuration from the command line, runs one command, and reports wrong requests."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from w2v_attn import __version__, folders, start_and_end
from w2v_attn.cli.former_keys import FORMER_CHOICES, FORMER_KEYS
from w2v_attn.cli.process import DONE, INTERRUPTED, TERMINATED, WRONG_REQUEST, need

COMMANDS = ("extract", "convert", "finetune", "transcribe", "evaluate", "load", "verify", "benchmark")
COMMANDS_WITHOUT_MODEL = ("convert",)
# The modules that take most of the start-up time of the other commands.
MODEL_MODULES = ("transformers.models.auto.modeling_auto", "w2v_attn.patching.replace")
# Command -> the extra that it needs, and the modules of that extra.
EXTRAS = {
    "finetune": ("finetune", "accelerate", "jiwer", "matplotlib", "tensorboard"),
    "evaluate": ("finetune", "jiwer", "matplotlib"),
}
INPUTS = ("audio", "data.train", "data.valid", "data.test")  # keys that name recordings

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

  w2v-attn COMMAND --help    the keys of a command, with examples
  w2v-attn --version

Try it: `w2v-attn extract` runs without network on the bundled speech and checkpoint."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 some inputs failed, 2 wrong request, 130/143 interrupted.

    Args:
        argv: The command and its overrides; None: those of the process.

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
    command, *overrides = arguments
    if command not in COMMANDS:
        print(f"there is no command {command}: use one of {', '.join(COMMANDS)}\n\n{USAGE}", file=sys.stderr)
        sys.exit(WRONG_REQUEST)
    sys.exit(_run(command, overrides))


def _run(command: str, overrides: list[str]) -> int:
    """Compose the configuration of a command, run it, and report a wrong request in a few lines without a traceback."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers()
    # Hydra turns every error into exit code 1 unless HYDRA_FULL_ERROR makes it raise them.
    if (repeated := _repeated(command, overrides)) is not None:
        print(repeated, file=sys.stderr)
        return WRONG_REQUEST
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    wants_traceback = full_error == "1"
    codes: list[int] = []
    process_id = os.getpid()
    broken_pipes: list[BrokenPipeError] = []

    def task(config: Any) -> None:
        in_sweep = _name_job(command, overrides)
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
    program, sys.argv = sys.argv, [f"w2v-attn {command}", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(folders.find("conf")), config_name=command)(task)()
    except JobEnded as ended:
        codes.append(ended.code)
    except KeyboardInterrupt:
        codes.append(INTERRUPTED)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if wants_traceback:
            raise
        print(_explain(command, overrides, error), file=sys.stderr)
        return WRONG_REQUEST
    finally:
        sys.argv = program
        os.environ["HYDRA_FULL_ERROR"] = full_error or "0"
    if broken_pipes:
        raise broken_pipes[0]
    return max(codes, default=DONE)  # --help and --cfg run no task


class JobEnded(Exception):  # noqa: N818 - the job may have done most of its work
    """A job of a sweep in another process ended with a code other than 0. Hydra's launchers raise the first one."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"exit code {self.code}"


def _name_job(command: str, overrides: Sequence[str]) -> bool:
    """Return whether this is a job of a sweep; if it is, set sys.argv to the command that runs this job alone."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        return False
    flags = [part for part in overrides if "=" not in part and part[:1] != "~" and part not in ("-m", "--multirun")]
    sys.argv = [f"w2v-attn {command}", *flags, *settings.overrides.task]
    return True


def _register_resolvers() -> None:
    """Register the resolver `${bundled:NAME}`: the path of a bundled file or folder."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("bundled", lambda name: str(folders.find("data") / name), replace=True)


def _checked(command: str, config: Any, wants_traceback: bool) -> int:
    """Run a command on a composed configuration; report an error that a user can cause without a traceback."""
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
    except KeyboardInterrupt:  # before the run began
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:  # the class of all errors that a user can cause; HYDRA_FULL_ERROR=1 shows the traceback
        if wants_traceback:
            raise
        former = _former_choice(sys.argv[1:])
        print(f"{error}\n{former}" if former else error, file=sys.stderr)
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


def _repeated(command: str, overrides: list[str]) -> str | None:
    """Return a message where a key for recordings is given more than once: Hydra would silently use the last value."""
    for key in INPUTS:
        given = [override for override in overrides if override.startswith(f"{key}=")]
        if len(given) > 1:
            return (
                f"{key} is given {len(given)} times: {given[0]} … {given[-1]}. Expected one value: a folder, or a "
                f"manifest that lists the recordings, or, if the shell expanded the braces, shards in quotes:\n\n"
                f"  w2v-attn {command} '{key}=\"corpus-{{000..123}}.tar\"'\n"
            )
    return None


def _explain(command: str, overrides: list[str], error: Exception) -> str:
    """Return what is wrong with an override, and how to write it."""
    import difflib
    import re

    text = str(error).split("Config search path")[0].strip()
    unparsed = getattr(error, "override", None)  # the override that Hydra could not parse
    for override in overrides:
        key, equals, value = override.partition("=")
        if (
            key
            and equals
            and (override == unparsed or override in text)
            and not (key in FORMER_KEYS and "Could not override" in text)
            and not re.fullmatch(r"[\w./:+@%-]*", value, re.ASCII)
        ):
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            return (
                f"{override}: contains characters with a meaning in Hydra's grammar ( = , ( [ {{ é ~ spaces …).\n"
                f"Quote the value for Hydra, and the whole argument for the shell:\n\n"
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
    """Return a line with the present name of a choice that is given by its former name; empty where none is."""
    return "".join(f"Did you mean {FORMER_CHOICES[given]}?\n" for given in overrides if given in FORMER_CHOICES)


def _keys(command: str) -> list[str]:
    """Return all keys of a command, as they are written on the command line."""
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
