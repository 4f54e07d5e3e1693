"""The encoders' speeds as a picture: a panel for each set, a bar for each contender, and the floor as a line."""

from pathlib import Path
from typing import Any

import matplotlib.figure


def draw(report: dict[str, Any], path: Path) -> Path:
    """Bars of audio-seconds per second as PNG; hatched where the features are not the reference's."""
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
        axes.set_title(f"{name}: {audio}; products alone would reach {floor:.3g} (the line)")
    panels[-1].set_xlabel("seconds of audio a second (hatched: other features than the reference's)")
    figure.suptitle(
        f"wav2vec2 {settings['size']}, {settings['dtype']}, {report['device']}, {report['threads']} threads"
    )
    figure.savefig(path, dpi=120)
    return path
