"""`suite=cli`: whole commands, from start to files, against a loop with plain transformers; and the start-up time."""

import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.benchmarks.measurement import peak_bytes_of, seconds_of
from w2v_attn.benchmarks.results import agrees, check_ours, feature_errors, run_environment
from w2v_attn.benchmarks.workload import random_model, random_waveforms
from w2v_attn.checkpoints.huggingface_folder import quiet_transformers
from w2v_attn.encoder.cost import SAMPLE_RATE

MODULE = (sys.executable, "-m")
LOOP = "w2v_attn.benchmarks.transformers_loop"
BATCH = 8


@dataclass(frozen=True)
class CommandResult:
    """One line of the report: times in seconds, peak memory of the whole process in MiB.

    Attributes:
        task: What is done: all recordings, one of them, or only a start.
        speed: Seconds of audio per second.
        ratio: Speed over that of the best peer on the same task.
    """

    command: str
    ours: bool
    task: str
    median_s: float
    least_s: float
    most_s: float
    speed: float | None
    ratio: float | None
    peak_mib: float | None
    max_abs_error: float | None
    relative_error: float | None
    agrees: bool
    note: str


@dataclass
class _Command:
    """A command and its measurements.

    Attributes:
        line: Returns the command line for an output folder.
        extracts: Whether it writes features.
        padded: Whether it pads recordings.
    """

    name: str
    ours: bool
    task: str
    line: Callable[[Path], Sequence[str]]
    extracts: bool = True
    reference: bool = False
    padded: bool = False
    peak: int | None = None
    found: tuple[float, float] | None = None
    agrees: bool = True
    times: list[float] = field(default_factory=list)


def run(
    *,
    size: str,
    durations: Sequence[float],
    rounds: int,
    device: torch.device,
    dtype: str,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return the report: run environment, settings and figures.

    Args:
        size: Size of the model.
        durations: Lengths of the recordings in seconds.
        rounds: Number of rounds.
        device: Device of the commands.
        dtype: Dtype of the commands.
        log: Called with a line for each step.

    Raises:
        ValueError: an unknown size, a dtype that is not compared, a command that failed, or features of ours that
            differ from the reference, so that our time cannot be compared.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"commands are compared in float32 or bfloat16, got dtype={dtype}")
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or above, got {rounds}")
    settings = {"size": size, "dtype": dtype, "rounds": rounds, "seconds": list(durations)}
    report: dict[str, Any] = {"suite": "cli", **run_environment(device), "settings": settings, "figures": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _save_checkpoint(size, folder / "checkpoint")
        tasks = {f"{len(durations)} recordings": list(durations), "1 recording": [durations[0]]}
        for number, chosen in enumerate(tasks.values()):
            save_recordings(chosen, folder / f"audio{number}")
        commands = []
        for number, task in enumerate(tasks):
            commands += _commands(task, folder / "checkpoint", folder / f"audio{number}", dtype, device)
        commands += _starts()
        log("memory and results of every command")
        _first_round(commands, folder, dtype)
        shuffled = random.Random(0)  # another order each round: no command always runs after the same one
        for number in range(rounds):
            for command in shuffled.sample(commands, len(commands)):
                command.times.append(seconds_of(command.line(folder / "output")))
                shutil.rmtree(folder / "output", ignore_errors=True)
            log(f"round {number + 1} of {rounds}, {sum(command.times[-1] for command in commands):.0f} s")
    report["figures"] = [asdict(figure) for figure in _figures(commands, {k: sum(v) for k, v in tasks.items()})]
    return report


def _commands(task: str, checkpoint: Path, audio: Path, dtype: str, device: torch.device) -> Iterator[_Command]:
    def ours(output: Path) -> list[str]:
        options = [f"audio={audio}", f"output={output}", "model=local", f"model.checkpoint={checkpoint}"]
        return [*MODULE, "w2v_attn", "extract", *options, f"dtype={dtype}", f"device={device}"]

    def loop(batch: int, dtype: str) -> Callable[[Path], list[str]]:
        return lambda output: [*MODULE, LOOP, str(checkpoint), str(audio), str(output), dtype, str(device), str(batch)]

    yield _Command("w2v-attn extract", True, task, ours)
    yield _Command("transformers loop", False, task, loop(1, dtype), reference=dtype == "float32")
    if dtype != "float32":
        yield _Command("transformers loop, float32", False, task, loop(1, "float32"), reference=True)
    if not task.startswith("1 "):
        yield _Command(f"transformers loop, sorted × {BATCH}", False, task, loop(BATCH, dtype), padded=True)


def _starts() -> Iterator[_Command]:
    # transformers imports lazily: importing a model class shows the time that a model takes.
    for code in ("import torch, transformers", "import w2v_attn; from transformers import Wav2Vec2Model"):
        line = (sys.executable, "-c", code)
        yield _Command(f'python -c "{code}"', False, "start", lambda _, line=line: line, extracts=False)
    line_of_ours = (*MODULE, "w2v_attn", "--help")
    yield _Command("w2v-attn --help", True, "start", lambda _: line_of_ours, extracts=False)


def _save_checkpoint(size: str, folder: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    with quiet_transformers():
        random_model(size).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def save_recordings(durations: Sequence[float], folder: Path) -> None:
    """Write 16-bit wav files with the loudness of speech."""
    import soundfile

    folder.mkdir()
    for number, wave in enumerate(random_waveforms(durations)):
        samples = (0.05 * wave).clamp(-1, 1).numpy()
        soundfile.write(folder / f"{number:03d}.wav", samples, SAMPLE_RATE, subtype="PCM_16")


def _first_round(commands: Sequence[_Command], folder: Path, dtype: str) -> None:
    """Measure the memory of every command, and compare its features with those of the float32 loop one by one."""
    results: dict[str, dict[str, Tensor]] = {}
    for number, command in enumerate(commands):
        output = folder / f"first{number}"
        command.peak = peak_bytes_of(command.line(output))
        if command.extracts:
            results[f"{command.task}/{command.name}"] = _read(output)
    stock_errors: dict[str, float] = {}
    references = {c.task: results[f"{c.task}/{c.name}"] for c in commands if c.reference}
    # Stock's own error is the bound of the others, so it comes first.
    for command in sorted(commands, key=lambda c: c.name != "transformers loop"):
        if not command.extracts:
            continue
        wanted, files = references[command.task], results[f"{command.task}/{command.name}"]
        same = files.keys() == wanted.keys()
        found = feature_errors([files[k] for k in wanted], [*wanted.values()]) if same else (float("inf"), float("inf"))
        if dtype != "float32" and command.name == "transformers loop":
            stock_errors[command.task] = found[1]
        bound = stock_errors.get(command.task)
        command.found, command.agrees = found, agrees(*found, bound, ours=command.ours)
        if command.ours:
            check_ours(command.name, command.task, *found, bound)


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {path.name: load_file(path)["final"] for path in sorted(folder.glob("*.safetensors"))}


def _figures(commands: Sequence[_Command], audio: dict[str, float]) -> Iterator[CommandResult]:
    """Yield the figures of all commands. audio: seconds of each task."""
    medians = {id(command): statistics.median(command.times) for command in commands}
    for command in commands:
        peers = [medians[id(c)] for c in commands if c.task == command.task and not c.ours and c.agrees and c.extracts]
        median = medians[id(command)]
        max_abs, relative = command.found or (None, None)
        differs = "differs, for it normalises over padding" if command.padded else "differs"
        yield CommandResult(
            command.name,
            command.ours,
            command.task,
            median,
            min(command.times),
            max(command.times),
            audio[command.task] / median if command.extracts else None,
            min(peers) / median if peers else None,
            None if command.peak is None else command.peak / 2**20,
            max_abs,
            relative,
            command.agrees,
            "" if command.agrees else differs,
        )


def tables(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield (title, header, rows) for each task; ratios are to the best peer, above 1 is faster."""
    settings = report["settings"]
    low = settings["dtype"] != "float32"
    header = ("command", "s (min … max)", "audio-s/s", "× best peer", "peak MiB", "max difference")
    header += ("relative error", "note") if low else ("note",)
    for task in dict.fromkeys(figure["task"] for figure in report["figures"]):
        rows = []
        for f in (figure for figure in report["figures"] if figure["task"] == task):
            row = (
                f["command"],
                f"{f['median_s']:.2f} ({f['least_s']:.2f} … {f['most_s']:.2f})",
                "–" if f["speed"] is None else f"{f['speed']:.4g}",
                "–" if f["ratio"] is None else f"{f['ratio']:.2f}",
                "–" if f["peak_mib"] is None else f"{f['peak_mib']:.0f}",
                "–" if f["max_abs_error"] is None else f"{f['max_abs_error']:.1e}",
            )
            error = () if not low else ("–" if f["relative_error"] is None else f"{f['relative_error']:.1e}",)
            rows.append((*row, *error, f["note"]))
        versions = f"{report['device']}, {report['threads']} threads, torch {report['torch']}"
        yield f"{settings['size']}, {settings['dtype']}, {task}, with start-up ({versions})", header, rows
