"""`suite=long_form`: the errors of sliding windows and chunks against full attention on a long recording."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from w2v_attn.audio.read_audio import read_audio
from w2v_attn.benchmarks.measurement import seconds
from w2v_attn.benchmarks.results import run_environment
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.corpus.listing import list_recordings
from w2v_attn.encoder.cost import SAMPLE_RATE
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.long_form import LongForm


@dataclass(frozen=True)
class LongFormResult:
    """One line of the report.

    Attributes:
        seconds: Length of the window or chunk.
        relative_l2: Relative L2 difference from full attention.
        same_symbols: Fraction of frames with the same most likely symbol as with full attention.
    """

    kind: str
    seconds: float | None
    time_s: float
    relative_l2: float
    same_symbols: float


def run(
    *,
    checkpoint: str,
    audio: str,
    duration: float,
    widths: Sequence[float],
    device: torch.device,
    log: Callable[[str], None],
    base_model: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Return the report.

    Args:
        checkpoint: A checkpoint with a CTC head.
        audio: As for `extract`; recordings are concatenated.
        duration: Length of the concatenated recording in seconds.
        widths: Lengths of sliding windows and chunks in seconds.
        device: Device of the encoder.
        log: Called with a line for each step.
        base_model: The base model of a PEFT adapter; None: the one that its config names.

    Raises:
        CheckpointError: a checkpoint without a CTC head.
        ValueError: there is not enough audio.
    """
    waveform = _recording(audio, duration)
    figures: list[LongFormResult] = []
    full: Tensor | None = None
    for long_form in [
        LongForm(),
        *(
            LongForm(kind=kind, seconds=width, overlap=width / 6)
            for kind in ("sliding_window", "chunked")
            for width in widths
        ),
    ]:
        log(f"{long_form.kind}, {long_form.seconds:g} s")
        loaded = load_checkpoint(checkpoint, base_model=base_model, with_head=True)
        head = getattr(loaded.model, "lm_head", None)
        if head is None:
            raise CheckpointError(f"{checkpoint} has no CTC head: use a checkpoint that was fine-tuned for CTC")
        base = getattr(loaded.model, loaded.model.base_model_prefix)
        encoder = Encoder(type(loaded)(**{**vars(loaded), "model": base}), device=device, long_form=long_form)
        head = head.to(device)
        found: list[Tensor] = []
        time_s = seconds(
            lambda into=found, encoder=encoder: into.append(encoder.extract([waveform])[0]["final"]), device
        )
        features = found[0]
        full = features if full is None else full
        with torch.no_grad():
            same = (head(features).argmax(-1) == head(full).argmax(-1)).float().mean().item()
        distance = ((features - full).norm() / full.norm()).item()
        width = None if long_form.kind == "full" else long_form.seconds
        figures.append(LongFormResult(long_form.kind, width, time_s, distance, same))
    settings = {"checkpoint": checkpoint, "audio": audio, "duration": len(waveform) / SAMPLE_RATE}
    return {
        "suite": "long_form",
        **run_environment(device),
        "settings": settings,
        "figures": [asdict(f) for f in figures],
    }


def _recording(audio: str, duration: float) -> Tensor:
    parts, total = [], 0
    for row in list_recordings(audio).rows:
        parts.append(read_audio(row.path))
        total += len(parts[-1])
        if total >= duration * SAMPLE_RATE:
            return torch.cat(parts)[: int(duration * SAMPLE_RATE)]
    raise ValueError(f"{audio} has {total / SAMPLE_RATE:.0f} s of audio, {duration:g} s are needed")


def tables(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield the table as (title, header, rows)."""
    rows = [
        (
            f["kind"],
            "–" if f["seconds"] is None else f"{f['seconds']:g} s",
            f"{f['time_s']:.2f}",
            f"{f['relative_l2']:.1e}",
            f"{f['same_symbols']:.2%}",
        )
        for f in report["figures"]
    ]
    title = f"one recording of {report['settings']['duration']:.0f} s ({report['device']})"
    yield title, ("attention", "width", "s", "relative L2 from full", "same symbols"), rows
