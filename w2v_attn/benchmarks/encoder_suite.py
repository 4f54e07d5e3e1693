"""`suite=encoder`: features of our encoder and of every available peer, on the same weights and waveforms."""

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.benchmarks.measurement import (
    available_bytes,
    float32_is_float32,
    peak_bytes,
    product_rates,
    seconds,
    steady_allocator,
)
from w2v_attn.benchmarks.peers.contender import Contender, Subject, Unavailable
from w2v_attn.benchmarks.peers.pytorch_peers import OneByOne, Ours
from w2v_attn.benchmarks.peers.registry import select_peers
from w2v_attn.benchmarks.results import agrees, check_ours, feature_errors, run_environment
from w2v_attn.benchmarks.workload import random_model, random_waveforms
from w2v_attn.checkpoints.errors import first_line
from w2v_attn.dtypes import DTYPES
from w2v_attn.encoder.cost import SAMPLE_RATE, operations
from w2v_attn.encoder.layers import check_layers

# Tensors of the first convolution's size that stock has in memory, and of T² entries per head in quadratic peers.
CONVOLUTION_COPIES, QUADRATIC_COPIES = 4, 2
# Recordings of a set whose features are compared, spread evenly over a larger set, because references take minutes.
MAX_COMPARED = 48


@dataclass(frozen=True)
class EncoderResult:
    """One line of the report: times in seconds, peak memory in MiB.

    Attributes:
        speed: Seconds of audio per second.
        ratio: Speed over that of the best peer.
        floor_fraction: Time of the matrix products alone over the median time.
        relative_error: Relative L2 error of all frames.
        agrees: Whether the errors are within the bounds.
    """

    contender: str
    ours: bool
    set: str
    median_s: float
    least_s: float
    most_s: float
    speed: float
    ratio: float | None
    floor_fraction: float
    peak_mib: float | None
    max_abs_error: float | None
    relative_error: float | None
    agrees: bool
    note: str


@dataclass
class _Entry:
    """A contender on one set of recordings. layer: the one that it returns; peak in bytes, times in seconds."""

    contender: Contender
    layer: str
    peak: int | None
    max_abs_error: float | None
    relative_error: float | None
    agrees: bool
    times: list[float]

    @property
    def ours(self) -> bool:
        return isinstance(self.contender, Ours)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def run(
    *,
    size: str,
    sets: Mapping[str, Sequence[float]],
    peers: Sequence[str],
    up_to: str | None,
    rounds: int,
    device: torch.device,
    dtype: str,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return the report: run environment, settings, figures, and which contenders were left out and why.

    Args:
        size: Size of the model.
        sets: Name -> lengths of its recordings in seconds.
        peers: Names in `peers.registry`, or all.
        up_to: A layer: ours is also timed up to it.
        rounds: Number of rounds.
        device: Device of all contenders.
        dtype: `float32` or `bfloat16`.
        log: Called with a line for each step.

    Raises:
        ValueError: an unknown size, peer or layer; a dtype that is not compared; or our features differ from the
            reference, so that our time cannot be compared.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"encoders are compared in float32 or bfloat16, got dtype={dtype}")
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or above, got {rounds}")
    contenders: list[Contender] = [Ours(), *select_peers(peers, device)]
    reference = random_model(size).to(device)
    if up_to is not None:
        (up_to,) = check_layers([up_to], reference.config.num_hidden_layers)
        contenders.insert(1, Ours(up_to))
    model = reference if dtype == "float32" else deepcopy(reference).to(DTYPES[dtype])
    if model is not reference:
        contenders.append(OneByOne(float32=True))
    report: dict[str, Any] = {
        "suite": "encoder",
        **run_environment(device),
        "settings": {"size": size, "dtype": dtype, "rounds": rounds, "sets": {k: list(v) for k, v in sets.items()}},
        "figures": [],
        "left_out": [],
        "preparation_s": {},
    }

    def leave_out(name: str, where: str, reason: str) -> None:
        report["left_out"].append({"contender": name, "set": where, "reason": reason})
        log(f"left out: {name}{f' on {where}' if where else ''}: {reason}")

    with tempfile.TemporaryDirectory() as folder, float32_is_float32():
        subject = Subject(reference, model, DTYPES[dtype], device, Path(folder))
        ready = []
        for contender in contenders:
            try:
                taken = seconds(lambda c=contender: c.prepare(subject), device)
            except Unavailable as reason:
                leave_out(contender.name, "", str(reason))
                continue
            ready.append(contender)
            report["preparation_s"][contender.name] = round(taken, 2)
            log(f"prepared in {taken:.1f} s: {contender.name}")
        rates: list[dict[str, float]] = []
        measured = {
            name: _measure(name, durations, ready, subject, rounds, rates, leave_out, log)
            for name, durations in sets.items()
        }
    report["rates"] = {way: [rate[way] for rate in rates] for way in rates[0]}
    best_rate = max(map(statistics.median, report["rates"].values()))
    for name, durations in sets.items():
        report["figures"] += [asdict(f) for f in _figures(name, durations, measured[name], reference.config, best_rate)]
    return report


def _measure(
    name: str,
    durations: Sequence[float],
    contenders: Sequence[Contender],
    subject: Subject,
    rounds: int,
    rates: list[dict[str, float]],
    leave_out: Callable[[str, str, str], None],
    log: Callable[[str], None],
) -> list[_Entry]:
    """Measure memory and errors in a first round, then time in interleaved rounds.

    Args:
        rates: The rates of matrix products are appended for each round.
    """
    waves = random_waveforms(durations)
    fitting = []
    for contender in contenders:
        need = _bytes_needed(contender, durations, subject)
        if contender.batch > 1 and len(durations) == 1:
            leave_out(contender.name, name, "one recording is not a batch")
        elif not isinstance(contender, Ours) and need > 0.7 * available_bytes(subject.device):
            leave_out(contender.name, name, f"would need about {need / 2**30:.0f} GiB")
        else:
            fitting.append(contender)
    compared = slice(None, None, -(-len(waves) // MAX_COMPARED))
    references = _References(waves[compared], fitting, subject)
    if subject.device.type == "cuda" and subject.model is not subject.reference:
        # The reference is not timed there: it takes minutes, for a long grouped convolution in float32.
        fitting = [contender for contender in fitting if not (isinstance(contender, OneByOne) and contender.float32)]
    log(
        f"{name}: {len(waves)} recordings, {sum(durations):.0f} s: memory of {len(fitting)} contenders, "
        f"and their results for {len(waves[compared])} recordings"
    )
    entries = _first_round(name, waves, fitting, subject, references, compared, leave_out, log)
    shuffled = random.Random(0)  # another order each round: no contender always runs after the same one
    longest = [max(waves, key=len)]
    with steady_allocator():
        for entry in entries:
            entry.contender.run(longest)  # allocates the memory that is then kept
        for number in range(rounds):
            rates.append(product_rates(subject.config, subject.dtype, subject.device))
            for entry in shuffled.sample(entries, len(entries)):
                entry.times.append(seconds(lambda e=entry: e.contender.run(waves), subject.device))
            log(f"{name}: round {number + 1} of {rounds}, {sum(e.times[-1] for e in entries):.0f} s")
    gc.collect()
    return entries


def _bytes_needed(contender: Contender, durations: Sequence[float], subject: Subject) -> int:
    """Return an estimate of the peak memory of a contender."""
    config, samples = subject.config, int(max(durations) * SAMPLE_RATE)
    entries = CONVOLUTION_COPIES * config.conv_dim[0] * samples // config.conv_stride[0]
    if contender.quadratic:
        frames = samples // torch.tensor(config.conv_stride).prod().item()
        entries += QUADRATIC_COPIES * config.num_attention_heads * int(frames) ** 2
    itemsize = 4 if isinstance(contender, OneByOne) and contender.float32 else subject.dtype.itemsize
    return min(contender.batch, len(durations)) * entries * itemsize


def _first_round(
    name: str,
    waves: Sequence[Tensor],
    contenders: Sequence[Contender],
    subject: Subject,
    references: "_References",
    compared: slice,
    leave_out: Callable[[str, str, str], None],
    log: Callable[[str], None],
) -> list[_Entry]:
    stock_errors: dict[str, float] = {}
    entries = []
    for contender in contenders:
        layer = contender.layer if isinstance(contender, Ours) else "final"
        kept: list[list[Tensor]] = []
        started = time.monotonic()
        try:
            peak = peak_bytes(lambda c=contender, k=kept: k.append(c.run(waves)), subject.device)
        except Exception as error:  # peers fail in many ways; ours may not
            if isinstance(contender, Ours):
                raise
            leave_out(contender.name, name, f"{type(error).__name__}: {first_line(error)}")
            continue
        features = kept.pop()[compared]
        wanted = references.of(layer)
        entry = _Entry(contender, layer, peak, None, None, True, [])
        if wanted is not None:
            entry.max_abs_error, entry.relative_error = found = feature_errors(features, wanted)
            if subject.dtype != torch.float32 and layer not in stock_errors:
                stock_errors[layer] = feature_errors(references.stock(layer), wanted)[1]
            entry.agrees = agrees(*found, stock_errors.get(layer), ours=entry.ours)
            if entry.ours:
                check_ours(contender.name, name, *found, stock_errors.get(layer))
        entries.append(entry)
        log(f"{name}: compared, {time.monotonic() - started:.0f} s: {contender.name}")
    return entries


class _References:
    """Features of stock Hugging Face one by one, cached; None if they do not fit into memory."""

    def __init__(self, waves: Sequence[Tensor], contenders: Sequence[Contender], subject: Subject):
        self._waves, self._subject = waves, subject
        references = [contender for contender in contenders if isinstance(contender, OneByOne)]
        self._fits = len(references) == (1 if subject.model is subject.reference else 2)
        self._known: dict[str, list[Tensor]] = {}

    def of(self, layer: str) -> list[Tensor] | None:
        """Return the float32 features."""
        if self._fits and layer not in self._known:
            self._known[layer] = self._run(OneByOne(float32=True, layer=layer))
        return self._known.get(layer)

    def stock(self, layer: str) -> list[Tensor]:
        """Return the features in the dtype that is compared."""
        return self._run(OneByOne(layer=layer))

    def _run(self, contender: OneByOne) -> list[Tensor]:
        contender.prepare(self._subject)
        return contender.run(self._waves)


def _figures(
    name: str, durations: Sequence[float], entries: Sequence[_Entry], config: Any, rate: float
) -> Iterator[EncoderResult]:
    """Yield the figures of all contenders. rate: GFLOP/s of matrix products."""
    # Padded batches count even if the group norm includes padding: many people use them.
    equal = (e for e in entries if not e.ours and (e.agrees or _normalises_padding(e, config)))
    peers = [entry.median for entry in equal if entry.max_abs_error is not None]
    whole = next(entry.median for entry in entries if entry.ours)
    for entry in entries:
        blocks = _blocks(entry.layer)
        least = sum(operations(config, duration, blocks=blocks) for duration in durations) / rate
        yield EncoderResult(
            entry.contender.name,
            entry.ours,
            name,
            entry.median,
            min(entry.times),
            max(entry.times),
            sum(durations) / entry.median,
            min(peers) / entry.median if peers else None,
            least / entry.median,
            None if entry.peak is None else entry.peak / 2**20,
            entry.max_abs_error,
            entry.relative_error,
            entry.agrees,
            _note(entry, whole, config),
        )


def _blocks(layer: str) -> int | None:
    """Return how many blocks a layer needs; None: all."""
    if layer == "final":
        return None
    return 0 if layer == "embed" else int(layer.removeprefix("layer_"))


def _normalises_padding(entry: _Entry, config: Any) -> bool:
    return entry.contender.batch > 1 and config.feat_extract_norm == "group"


def _note(entry: _Entry, whole: float, config: Any) -> str:
    if entry.max_abs_error is None:
        return "not compared: the reference does not fit"
    if not entry.agrees:
        return "differs, for it normalises over padding" if _normalises_padding(entry, config) else "differs"
    if entry.layer != "final":
        return f"{whole / entry.median:.2f} × as fast as all layers"
    return ""


def tables(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield (title, header, rows) for each set and for what was left out; ratios above 1: faster than the best peer."""
    settings = report["settings"]
    low = settings["dtype"] != "float32"
    header = (
        "encoder",
        "s (min … max)",
        "audio-s/s",
        "× best peer",
        "of floor",
        "peak MiB",
        "max difference",
    )
    header += ("relative error", "note") if low else ("note",)
    way, rates = max(report["rates"].items(), key=lambda item: statistics.median(item[1]))
    rate = f"{statistics.median(rates):.0f} ({min(rates):.0f} … {max(rates):.0f}) GFLOP/s, {way}"
    for name, durations in settings["sets"].items():
        rows = []
        for f in (figure for figure in report["figures"] if figure["set"] == name):
            row = (
                f["contender"],
                f"{f['median_s']:.2f} ({f['least_s']:.2f} … {f['most_s']:.2f})",
                f"{f['speed']:.4g}",
                "–" if f["ratio"] is None else f"{f['ratio']:.2f}",
                f"{f['floor_fraction']:.0%}",
                "–" if f["peak_mib"] is None else f"{f['peak_mib']:.0f}",
                "–" if f["max_abs_error"] is None else f"{f['max_abs_error']:.1e}",
            )
            error = () if not low else ("–" if f["relative_error"] is None else f"{f['relative_error']:.1e}",)
            rows.append((*row, *error, f["note"]))
        title = (
            f"{settings['size']}, {settings['dtype']}, {name}: {len(durations)} recordings, {sum(durations):.0f} s; "
            f"products at {rate} ({report['device']}, {report['threads']} threads, torch {report['torch']})"
        )
        yield title, header, rows
    if report["left_out"]:
        rows = [(entry["contender"], entry["set"] or "all", entry["reason"]) for entry in report["left_out"]]
        yield "Left out", ("encoder", "set", "reason"), rows
