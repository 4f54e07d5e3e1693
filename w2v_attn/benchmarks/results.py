"""Results of benchmarks: agreement with the reference, the environment of a run, and reports as JSON and pictures."""

import json
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn import __version__, whole_files
from w2v_attn.verification import bounds

# bfloat16: bound on the error of a peer over stock's; peers round at other places and still count.
MAX_PEER_RATIO = 2.0


def feature_errors(features: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[float, float]:
    """Return the max abs difference and the relative L2 error over all frames; infinite for other shapes or NaN."""
    if len(features) != len(reference):
        return inf, inf
    placed = [rows.to(wanted.device) for rows, wanted in zip(features, reference, strict=True)]
    return bounds.distance(placed, reference)


def agrees(max_abs_error: float, relative_error: float, stock_error: float | None, *, ours: bool) -> bool:
    """Return whether errors are within the bounds. stock_error: relative error of stock; None in float32."""
    if stock_error is None:
        return max_abs_error <= bounds.FLOAT32
    return relative_error <= stock_error * (bounds.BFLOAT16_RATIO if ours else MAX_PEER_RATIO)


def check_ours(name: str, where: str, max_abs_error: float, relative_error: float, stock_error: float | None) -> None:
    """Check that ours agrees with the reference.

    Raises:
        ValueError: it does not, so its time cannot be compared.
    """
    if not agrees(max_abs_error, relative_error, stock_error, ours=True):
        stock = "" if stock_error is None else f", stock's own in this dtype {stock_error:.1e}"
        raise ValueError(
            f"{name} does not compute the reference's features on {where} (max abs difference {max_abs_error:.1e}, "
            f"relative error {relative_error:.1e}{stock}): its time cannot be compared"
        )


def run_environment(device: torch.device) -> dict[str, Any]:
    """Return date, versions and machine of a run."""
    import transformers

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "w2v_attn": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
    }


def check_output(path: Path) -> None:
    """Check that a report can be written, before minutes of measuring.

    Raises:
        ValueError: the folder cannot be written, or the path is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"output={path} cannot be written: {error.strerror or error}") from error
    if path.is_dir():
        raise ValueError(f"output={path} is a folder: name a .json file")


def write_json(report: dict[str, Any], path: Path) -> Path:
    """Write a report atomically; return its path."""
    whole_files.write_whole(path, (json.dumps(report, indent=1) + "\n").encode())
    return path


def draw_encoder_report(report: dict[str, Any], path: Path) -> Path:
    """Draw the report of the encoder suite: a panel for each set, a bar for each contender, the limit as a line.

    Bars are hatched if the features differ from the reference.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib.figure

    settings = report["settings"]
    sets = list(settings["sets"])
    height = 1.2 + 0.35 * max(sum(f["set"] == name for f in report["figures"]) for name in sets)
    figure = matplotlib.figure.Figure(figsize=(9, 1 + height * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, sets, strict=True):
        figures = [f for f in reversed(report["figures"]) if f["set"] == name]
        bars = axes.barh(
            [f["contender"] for f in figures],
            [f["speed"] for f in figures],
            color=["tab:blue" if f["ours"] else "tab:grey" for f in figures],
            hatch=["" if f["agrees"] else "//" for f in figures],
        )
        axes.bar_label(bars, labels=[f"{f['speed']:.3g}" for f in figures], padding=3)
        whole = next(f for f in figures if f["contender"] == "w2v_attn")
        floor = whole["speed"] / whole["floor_fraction"]
        axes.axvline(floor, color="tab:red", linestyle="--")
        axes.set_xlim(0, 1.1 * max(floor, *(f["speed"] for f in figures)))
        audio = f"{len(settings['sets'][name])} recordings, {sum(settings['sets'][name]):.0f} s"
        axes.set_title(f"{name}: {audio}; matrix products alone would reach {floor:.3g} (the line)")
    panels[-1].set_xlabel("seconds of audio a second (hatched: features differ from the reference)")
    figure.suptitle(
        f"wav2vec2 {settings['size']}, {settings['dtype']}, {report['device']}, {report['threads']} threads"
    )
    figure.savefig(path, dpi=120)
    return path


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
