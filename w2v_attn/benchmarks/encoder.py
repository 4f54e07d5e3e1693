"""`suite=encoder`: features of our encoder and of every peer there is, on the same weights and the same waveforms."""

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

from w2v_attn.benchmarks.agreement import agrees, check_ours, errors
from w2v_attn.benchmarks.floor import product_rates
from w2v_attn.benchmarks.measuring import available_bytes, float32_is_float32, peak_bytes, seconds, steady_allocator
from w2v_attn.benchmarks.models import random_model
from w2v_attn.benchmarks.peers.choice import choose
from w2v_attn.benchmarks.peers.hugging_face import OneByOne
from w2v_attn.benchmarks.peers.ours import Ours
from w2v_attn.benchmarks.peers.peer import Contender, Subject, Unavailable, first_line
from w2v_attn.benchmarks.recordings import waveforms
from w2v_attn.benchmarks.results import circumstances
from w2v_attn.dtypes import DTYPES
from w2v_attn.encoder.cost import SAMPLE_RATE, operations
from w2v_attn.encoder.layers import check_layers

# Tensors of the first convolution's size that stock holds at once, and of T² entries a head that quadratic peers hold.
CONVOLUTION_COPIES, QUADRATIC_COPIES = 4, 2
# Recordings of a set whose features are compared; of a larger set some from all over it, for references take minutes.
MOST_COMPARED = 48


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    times in seconds; speed in seconds of audio a second; ratio: to the best peer, above 1 is faster; memory in MiB.
    floor_fraction: the least time over the median. relative_error: L2, of all frames. agrees: within the bounds.
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
    """A contender on one set of recordings. layer: what it gives out. peak in bytes, times in seconds."""

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
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """The report: circumstances, settings, figures, and who was left out and why.

    sets: name -> seconds of its recordings. peers: names in `contenders.choice`, or all.
    up_to: time ours up to this layer, too. tell: is given a line for each step.

    Raises:
        ValueError: an unknown size, peer or layer; a dtype that is not compared; or our features are not the
            reference's: our time cannot be compared then.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"encoders are compared in float32 or bfloat16, got dtype={dtype}")
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or above, got {rounds}")
    contenders: list[Contender] = [Ours(), *choose(peers, device)]
    reference = random_model(size).to(device)
    if up_to is not None:
        (up_to,) = check_layers([up_to], reference.config.num_hidden_layers)
        contenders.insert(1, Ours(up_to))
    model = reference if dtype == "float32" else deepcopy(reference).to(DTYPES[dtype])
    if model is not reference:
        contenders.append(OneByOne(float32=True))
    report: dict[str, Any] = {
        "suite": "encoder",
        **circumstances(device),
        "settings": {"size": size, "dtype": dtype, "rounds": rounds, "sets": {k: list(v) for k, v in sets.items()}},
        "figures": [],
        "left_out": [],
        "preparation_s": {},
    }

    def leave_out(name: str, where: str, reason: str) -> None:
        report["left_out"].append({"contender": name, "set": where, "reason": reason})
        tell(f"left out: {name}{f' on {where}' if where else ''}: {reason}")

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
            tell(f"prepared in {taken:.1f} s: {contender.name}")
        rates: list[dict[str, float]] = []
        measured = {
            name: _measure(name, durations, ready, subject, rounds, rates, leave_out, tell)
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
    tell: Callable[[str], None],
) -> list[_Entry]:
    """Memory and results in a first round, then interleaved rounds. rates: takes those of products beside each."""
    waves = waveforms(durations)
    fitting = []
    for contender in contenders:
        need = _bytes_needed(contender, durations, subject)
        if contender.batch > 1 and len(durations) == 1:
            leave_out(contender.name, name, "one recording makes no batch")
        elif not isinstance(contender, Ours) and need > 0.7 * available_bytes(subject.device):
            leave_out(contender.name, name, f"would need about {need / 2**30:.0f} GiB")
        else:
            fitting.append(contender)
    compared = slice(None, None, -(-len(waves) // MOST_COMPARED))
    references = _References(waves[compared], fitting, subject)
    if subject.device.type == "cuda" and subject.model is not subject.reference:
        # What the reference takes there is of no interest, and minutes: a long grouped convolution in float32.
        fitting = [contender for contender in fitting if not (isinstance(contender, OneByOne) and contender.float32)]
    tell(
        f"{name}: {len(waves)} recordings, {sum(durations):.0f} s: memory of {len(fitting)} contenders, "
        f"and their results for {len(waves[compared])} recordings"
    )
    entries = _first_round(name, waves, fitting, subject, references, compared, leave_out, tell)
    shuffled = random.Random(0)  # another order each round: nobody always runs after the same neighbour
    longest = [max(waves, key=len)]
    with steady_allocator():
        for entry in entries:
            entry.contender.run(longest)  # takes the memory that then stays
        for number in range(rounds):
            rates.append(product_rates(subject.config, subject.dtype, subject.device))
            for entry in shuffled.sample(entries, len(entries)):
                entry.times.append(seconds(lambda e=entry: e.contender.run(waves), subject.device))
            tell(f"{name}: round {number + 1} of {rounds}, {sum(e.times[-1] for e in entries):.0f} s")
    gc.collect()
    return entries


def _bytes_needed(contender: Contender, durations: Sequence[float], subject: Subject) -> int:
    """An estimate of the most that a contender holds at once."""
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
    tell: Callable[[str], None],
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
            entry.max_abs_error, entry.relative_error = found = errors(features, wanted)
            if subject.dtype != torch.float32 and layer not in stock_errors:
                stock_errors[layer] = errors(references.stock(layer), wanted)[1]
            entry.agrees = agrees(*found, stock_errors.get(layer), ours=entry.ours)
            if entry.ours:
                check_ours(contender.name, name, *found, stock_errors.get(layer))
        entries.append(entry)
        tell(f"{name}: compared, {time.monotonic() - started:.0f} s: {contender.name}")
    return entries


class _References:
    """Features of stock Hugging Face one by one, each kept once it was asked for; None where it does not fit."""

    def __init__(self, waves: Sequence[Tensor], contenders: Sequence[Contender], subject: Subject):
        self._waves, self._subject = waves, subject
        references = [contender for contender in contenders if isinstance(contender, OneByOne)]
        self._fits = len(references) == (1 if subject.model is subject.reference else 2)
        self._known: dict[str, list[Tensor]] = {}

    def of(self, layer: str) -> list[Tensor] | None:
        """In float32."""
        if self._fits and layer not in self._known:
            self._known[layer] = self._run(OneByOne(float32=True, layer=layer))
        return self._known.get(layer)

    def stock(self, layer: str) -> list[Tensor]:
        """In the dtype that is compared."""
        return self._run(OneByOne(layer=layer))

    def _run(self, contender: OneByOne) -> list[Tensor]:
        contender.prepare(self._subject)
        return contender.run(self._waves)


def _figures(
    name: str, durations: Sequence[float], entries: Sequence[_Entry], config: Any, rate: float
) -> Iterator[Figure]:
    """rate: GFLOP/s of matrix products."""
    # Padded batches count though a group norm over padding differs: many use them.
    equal = (e for e in entries if not e.ours and (e.agrees or _normalises_padding(e, config)))
    peers = [entry.median for entry in equal if entry.max_abs_error is not None]
    whole = next(entry.median for entry in entries if entry.ours)
    for entry in entries:
        blocks = _blocks(entry.layer)
        least = sum(operations(config, duration, blocks=blocks) for duration in durations) / rate
        yield Figure(
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
    """How many blocks a layer needs; None: all."""
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
    """(title, header, rows) for each set, then who was left out; ratios are to the best peer, above 1 is faster."""
    settings = report["settings"]
    low = settings["dtype"] != "float32"
    header = (
        "encoder",
        "s (least … most)",
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
