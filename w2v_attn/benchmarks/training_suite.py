"""`suite=training`: a fine-tuning step with our encoder and with stock's, with one Trainer, on the same batches.

There are two batches: the requested lengths, which stock pads to the longest, and as many recordings of their mean
length, which is the best case of grouping by length for stock.
"""

import gc
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from w2v_attn.benchmarks.measurement import peak_bytes, seconds, steady_allocator
from w2v_attn.benchmarks.results import run_environment
from w2v_attn.checkpoints.processor_files import WAV2VEC2_EPSILON
from w2v_attn.encoder.cost import SAMPLE_RATE
from w2v_attn.patching.replace import replace_attention, restore_attention
from w2v_attn.training.callbacks import SilentListener
from w2v_attn.training.options import AugmentationOptions, CtcOptions, DataOptions, Recipe, TrainingOptions
from w2v_attn.training.speech_dataset import Augmentation, LengthBatchSampler, PaddingCollator, SpeechDataset
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.trainer import SpeechTrainer, losses_of
from w2v_attn.training.training_arguments import training_arguments
from w2v_attn.training.unpadded_frontend import normalize_per_recording, patch_frontend, restore_frontend
from w2v_attn.training.vocabulary import from_texts

LETTERS = "abcdefghijklmnopqrstuvwxyz' "


@dataclass(frozen=True)
class TrainingResult:
    """One line of the report: times in seconds, peak memory in MiB beyond weights and optimizer, initial loss."""

    contender: str
    ours: bool
    batch: str
    dropout: float
    median_s: float
    least_s: float
    most_s: float
    peak_mib: float | None
    loss: float | None


def run(
    *,
    lengths: Sequence[float],
    channels: int,
    heads: int,
    layers: int,
    freeze: str,
    dropouts: Sequence[float],
    rounds: int,
    device: torch.device,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Return the report: run environment, settings and figures.

    Args:
        lengths: Lengths of the recordings of the batch in seconds.
        channels: Hidden size of the model.
        heads: Number of attention heads.
        layers: Number of blocks.
        freeze: "feature_encoder" (the convolutions) or "none".
        dropouts: Dropout rates of the attention.
        rounds: Number of rounds.
        device: Device of the model.
        log: Called with a line for each step.
    """
    if freeze not in ("feature_encoder", "none"):
        raise ValueError(f"freeze must be feature_encoder or none, got {freeze}")
    sizes = {"channels": channels, "heads": heads, "layers": layers, "freeze": freeze}
    settings = {"seconds": list(lengths), **sizes, "rounds": rounds}
    report: dict[str, Any] = {"suite": "training", **run_environment(device), "settings": settings, "figures": []}
    batches = {"ragged": list(lengths), "equal": [sum(lengths) / len(lengths)] * len(lengths)}
    for dropout in dropouts:
        for name, seconds_of in batches.items():
            log(f"{name} lengths, attention dropout {dropout}: {rounds} rounds of {len(_CONTENDERS)} steps")
            figures = list(_measure(name, seconds_of, sizes, dropout, rounds, device))
            _check_losses(figures)
            report["figures"] += [asdict(figure) for figure in figures]
    return report


def _stock(implementation: str) -> Callable[[Any], None]:
    def patch(model: Any) -> None:
        restore_frontend(model)
        normalize_per_recording(model)  # stock's norm includes the padding: its losses could not be compared
        restore_attention(model).set_attn_implementation(implementation)

    return patch


def _attention_only(model: Any) -> None:
    _stock("sdpa")(model)
    replace_attention(model)


def _ours(model: Any) -> None:
    _stock("sdpa")(model)
    restore_frontend(model)
    replace_attention(model, unpad=True)
    patch_frontend(model)


# One model is patched for each of them in turn: the same weights, the same optimizer.
_CONTENDERS: dict[str, Callable[[Any], None]] = {
    "w2v_attn": _ours,
    "w2v_attn, attention alone": _attention_only,
    "Hugging Face sdpa": _stock("sdpa"),
    "Hugging Face eager": _stock("eager"),
}


def _measure(
    name_of_batch: str,
    lengths: Sequence[float],
    sizes: dict[str, Any],
    dropout: float,
    rounds: int,
    device: torch.device,
) -> Iterator[TrainingResult]:
    with tempfile.TemporaryDirectory() as folder:
        trainer, task = _trainer(dropout=dropout, device=device, folder=Path(folder), **sizes)
    model: Any = trainer.model
    batch = trainer._prepare_inputs(_batch(lengths, task, model))

    def step() -> None:
        trainer.training_step(model, batch, torch.tensor(len(lengths), device=device))
        trainer._clip_grad_norm(model)
        trainer.optimizer.step()  # type: ignore[union-attr]
        model.zero_grad()

    losses = {}
    for name, patch in _CONTENDERS.items():
        patch(model)
        losses[name] = None if dropout else losses_of(model.train(), batch, task).mean().item()
    times: dict[str, list[float]] = {name: [] for name in _CONTENDERS}
    shuffled = random.Random(0)
    with steady_allocator():
        for number in range(rounds + 1):
            for name in shuffled.sample(list(_CONTENDERS), len(_CONTENDERS)):
                _CONTENDERS[name](model)
                taken = seconds(step, device)
                if number > 0:  # the first round warms up
                    times[name].append(taken)
    gc.collect()
    for name, patch in _CONTENDERS.items():
        patch(model)
        peak = peak_bytes(step, device)
        spread = times[name]
        yield TrainingResult(
            name,
            patch in (_ours, _attention_only),
            name_of_batch,
            dropout,
            statistics.median(spread),
            min(spread),
            max(spread),
            None if peak is None else peak / 2**20,
            losses[name],
        )


def _check_losses(figures: Sequence[TrainingResult]) -> None:
    losses = [figure.loss for figure in figures if figure.loss is not None]
    if losses and max(losses) - min(losses) > 1e-4 * max(losses):
        raise ValueError(f"the contenders do not compute the same loss: {losses}: their times cannot be compared")


def _trainer(
    *, channels: int, heads: int, layers: int, freeze: str, dropout: float, device: torch.device, folder: Path
) -> tuple[SpeechTrainer, Ctc]:
    """Return a Trainer with wav2vec2-base's recipe for CTC on letters, with dropout in the attention only."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    task = Ctc(from_texts([LETTERS], unit="characters", case="lower", remove_characters=""))
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=channels,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=4 * channels,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        attention_dropout=dropout,
        layerdrop=0.0,
        mask_time_prob=0.0,
        vocab_size=len(task.vocabulary.symbols),
        pad_token_id=0,
    )
    config._attn_implementation = "sdpa"
    model: Any = Wav2Vec2ForCTC(config)
    if freeze == "feature_encoder":
        model.freeze_feature_encoder()
    device_name = "cuda" if device.type == "cuda" else "cpu"
    recipe = Recipe(
        task=CtcOptions(), data=DataOptions(train=""), checkpoint=None, device=device_name, training=TrainingOptions()
    )
    recordings = SpeechDataset(
        [],
        task,
        Augmentation(AugmentationOptions(), SAMPLE_RATE),
        sample_rate=SAMPLE_RATE,
        do_normalize=True,
        epsilon=WAV2VEC2_EPSILON,
        seed=0,
    )
    trainer = SpeechTrainer(
        model,
        training_arguments(recipe, folder),
        task,
        recordings=recordings,
        batches=LengthBatchSampler([1.0], 1.0, 1),
        collate=PaddingCollator(model._get_feat_extract_output_lengths),
        optimizer=recipe.optimizer,
        validate=lambda: ({}, None),
        listener=SilentListener(),
    )
    trainer.create_optimizer()
    return trainer, task


def _batch(lengths: Sequence[float], task: Ctc, model: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    items = []
    for length in lengths:
        waveform = torch.randn(int(length * SAMPLE_RATE), generator=generator)
        letters = torch.randint(len(LETTERS) - 1, (int(12 * length),), generator=generator)  # as fast as people speak
        items.append((waveform, task.vocabulary.encode("".join(LETTERS[i] for i in letters))))
    return PaddingCollator(model._get_feat_extract_output_lengths)(items)


def tables(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield (title, header, rows) for each batch and dropout rate; ratios are to the best peer, above 1 is faster."""
    audio = sum(report["settings"]["seconds"])
    header = ("step", "s (min … max)", "audio-s/s", "× best peer", "peak MiB", "loss")
    for batch, dropout in dict.fromkeys((figure["batch"], figure["dropout"]) for figure in report["figures"]):
        here = [figure for figure in report["figures"] if (figure["batch"], figure["dropout"]) == (batch, dropout)]
        best = min(figure["median_s"] for figure in here if not figure["ours"])
        rows = [
            (
                f["contender"],
                f"{f['median_s']:.2f} ({f['least_s']:.2f} … {f['most_s']:.2f})",
                f"{audio / f['median_s']:.2f}",
                f"{best / f['median_s']:.2f}",
                "–" if f["peak_mib"] is None else f"{f['peak_mib']:.0f}",
                "–" if f["loss"] is None else f"{f['loss']:.6f}",
            )
            for f in here
        ]
        versions = f"{report['device']}, {report['threads']} threads, torch {report['torch']}"
        yield f"a training step, {batch} lengths, attention dropout {dropout:g} ({versions})", header, rows
