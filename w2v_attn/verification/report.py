"""The report of `verify`: every comparison with its bounds, as JSON and as tables."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from w2v_attn.verification.bounds import Check
from w2v_attn.verification.comparisons import UNBOUNDED, Comparison

# Side: what is compared with stock on each recording alone.
SIDES = {
    "input": "the input of the model",
    "alone": "replace_attention, each recording alone",
    "padded": "replace_attention(unpad=True), all recordings in one padded batch",
    "weights": "attention weights of the two shortest recordings, each alone and both in a batch",
    "extract": "load_encoder(…).extract, all recordings packed",
}
KINDS = {
    "stage": "stages",
    "gradient": "gradients",
    "batch": "batch = single",
    "symbols": "symbols",
}
HEADER = ("stage", "largest", "diff max", "diff L2", "our error", "stock's", "of bound", "")


@dataclass(frozen=True)
class Padding:
    """The effect of stock's padded batch on the features of a recording, in float64.

    Attributes:
        recording: The padded recording with the largest effect.
        longest: The longest recording of the batch.
        max_abs: Largest absolute difference of `final` between the batch and the recording alone.
        relative_l2: Relative L2 difference of `final`.
        group_norm: Whether the convolutions have a norm over time, which is the reason.
    """

    recording: str
    longest: str
    max_abs: float
    relative_l2: float
    group_norm: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """All comparisons of a run.

    Attributes:
        recordings: Id -> length in seconds.
        padding: Effect of stock's padding; None if no recording is padded.
        notes: What could not be compared directly, and why.
    """

    checkpoint: str
    language: str | None
    family: str
    architecture: str
    recordings: dict[str, float]
    padding: Padding | None
    notes: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def holds(self) -> bool:
        """Whether every bound holds."""
        return all(comparison.holds for comparison in self.comparisons)


def as_record(report: Report) -> dict[str, Any]:
    """Return the report as a dictionary for JSON; a number that is not finite becomes null."""
    lines = [asdict(comparison) | {"holds": comparison.holds} for comparison in report.comparisons]
    whole = {"holds": report.holds, "broken": list(broken(report))}
    return _finite(asdict(report) | whole | {"comparisons": lines})


def tables(report: Report, *, stages: bool) -> Iterator[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    """Yield tables as (title, header, rows): with `stages` every stage of every side, then the summary."""
    if stages:
        for (dtype, side), lines in _grouped(report, "dtype", "side"):
            title = f"{dtype}, {side}: {SIDES[side]}; errors are {_error_name(dtype)} against float64"
            yield title, HEADER, [_line(comparison) for comparison in _worst_parameters(lines)]
    header = ("dtype", "side", "what", "at the end", "nearest to its bound", "bound", "is", "at most", "")
    rows = [(*group[:2], KINDS[group[2]], _end(lines), *_nearest(lines)) for group, lines in _grouped(report, *_GROUP)]
    yield f"Ours against stock: {report.checkpoint}, {report.architecture}, {_recordings(report)}", header, rows


def verdict(report: Report) -> str:
    """Return one sentence: all bounds hold, or how many do not, and the first of them."""
    checks = [check for comparison in report.comparisons for check in comparison.checks if check is not UNBOUNDED]
    failed = sum(not check.holds for check in checks)
    if not failed:
        return f"All {len(checks):,} bounds hold."
    return f"{failed:,} of {len(checks):,} bounds do not hold. {next(broken(report))}"


def broken(report: Report) -> Iterator[str]:
    """Yield a sentence for each dtype, side and kind that breaks a bound: where first, and by how much."""
    for (dtype, side, kind), lines in _grouped(report, *_GROUP):
        wrong = [comparison for comparison in lines if not comparison.holds]
        if wrong:
            first, check = wrong[0], next(check for check in wrong[0].checks if not check.holds)
            yield (
                f"{dtype}, {side}, {KINDS[kind]}: broken first at {first.name} ({check.what} {_short(check.value)}, "
                f"at most {_short(check.limit)}), {len(wrong)} of {len(lines)} in all"
            )


def sentences(report: Report) -> Iterator[str]:
    """Yield remarks for the reader: the effect of padding, and the notes."""
    if report.padding is not None:
        yield _about_padding(report, report.padding)
    yield from report.notes


def _about_padding(report: Report, padding: Padding) -> str:
    figure = f"by up to {_short(padding.max_abs)} (relative L2 {_short(padding.relative_l2)})"
    what = f"{padding.recording} in a batch with {padding.longest}"
    if padding.group_norm:
        said = (
            "Stock's padded batch changes the features of this checkpoint: its first convolution is normalised over "
            f"all the time it is given, padding included. {what}: features differ {figure} from those alone"
        )
    else:
        said = f"In stock's padded batch the features of a recording, {what}, differ {figure} from those alone"
    ours = [
        c.checks[0].value
        for c in report.comparisons
        if c.side == "extract" and c.kind == "batch" and c.stage == "final"
    ]
    return f"{said}. Ours, extracted in a batch and alone: {_short(max(ours))} at most" if ours else said


def _recordings(report: Report) -> str:
    seconds = report.recordings.values()
    return f"{len(seconds)} recordings of {min(seconds):.1f} to {max(seconds):.1f} s"


_GROUP = ("dtype", "side", "kind")


def _grouped(report: Report, *by: str) -> Iterator[tuple[tuple[str, ...], list[Comparison]]]:
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for comparison in report.comparisons:
        groups.setdefault(tuple(getattr(comparison, name) for name in by), []).append(comparison)
    yield from groups.items()


def _worst_parameters(lines: Sequence[Comparison]) -> Iterator[Comparison]:
    """Yield all lines, but for the gradients of a stage only the one that is nearest to its bound."""
    worst: dict[tuple[str, str], Comparison] = {}
    for line in lines:
        key = (line.kind, line.stage)
        if key not in worst or line.worst.share > worst[key].worst.share:
            worst[key] = line
    yield from worst.values()


def _line(comparison: Comparison) -> tuple[str, ...]:
    figures, check = comparison.figures, comparison.worst
    label = {"stage": "", "gradient": "∂ "}.get(comparison.kind, f"{KINDS[comparison.kind]}, ")
    verdict = "" if comparison.holds else f"BROKEN: {check.what}"
    if figures is None:
        return f"{label}{comparison.name}", "", _short(check.value), "", "", "", _share(check), verdict
    if comparison.dtype == "float64":
        errors = ("", "")
    elif comparison.dtype == "bfloat16":
        errors = (_short(figures.our_l2), _short(figures.their_l2))
    else:
        errors = (_short(figures.our_max), _short(figures.their_max))
    numbers = (_short(figures.largest), _short(figures.max_abs), _short(figures.relative_l2))
    return f"{label}{comparison.name}", *numbers, *errors, _share(check), verdict


def _error_name(dtype: str) -> str:
    return "relative L2" if dtype == "bfloat16" else "max abs"


def _end(lines: Sequence[Comparison]) -> str:
    """Return the figure of the last stage, where the errors of all stages have accumulated."""
    last = lines[-1]
    value = last.checks[0].value if last.figures is None else last.figures.max_abs
    return f"{last.stage} {_short(value)}"


def _nearest(lines: Sequence[Comparison]) -> tuple[str, ...]:
    line = max(lines, key=lambda comparison: comparison.worst.share)
    check = line.worst
    wrong = next((comparison for comparison in lines if not comparison.holds), None)
    if check is UNBOUNDED:
        return "", "", "", "", check.what
    verdict = "holds" if wrong is None else f"BROKEN from {wrong.name}"
    return line.name, check.what, _short(check.value), _short(check.limit), verdict


def _short(value: float) -> str:
    """Return a number with two digits, or a count."""
    return f"{value:.2g}" if value < 1 else f"{value:.4g}"


def _share(check: Check) -> str:
    return f"{100 * check.share:.0f} %" if isfinite(check.share) else "∞"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value
