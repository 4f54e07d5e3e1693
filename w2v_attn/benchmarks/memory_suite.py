"""`suite=memory`: the peak memory of loading a model and extracting features, relative to its weights."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from w2v_attn.benchmarks.cli_suite import LOOP, MODULE, save_recordings
from w2v_attn.benchmarks.measurement import peak_bytes_of
from w2v_attn.benchmarks.results import run_environment
from w2v_attn.benchmarks.workload import SIZES, model_config
from w2v_attn.dtypes import DTYPES

SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class MemoryResult:
    """One line of the report.

    Attributes:
        command: What ran.
        stored: Dtype of the weights on the disk.
        weights_mib: Weights in the dtype that is computed in, in MiB.
        peak_mib: Peak resident memory of the process, files that are mapped into it included.
        ratio: Peak over weights.
        seconds: Wall time of the whole command.
    """

    command: str
    stored: str
    weights_mib: float
    peak_mib: float | None
    ratio: float | None
    seconds: float


def run(
    *,
    size: str,
    dtype: str,
    duration: float,
    peers: Sequence[str],
    device: torch.device,
    log: Callable[[str], None],
    **_: Any,
) -> dict[str, Any]:
    """Return the report: run environment, settings and figures.

    Args:
        size: Size of the model.
        dtype: Dtype of the computation; checkpoints are stored in it, and in float32 if that is another.
        duration: Length of the recording in seconds.
        peers: `all`, or `none`: without the loop of plain transformers.
        device: Device of the commands.
        log: Called with a line for each step.

    Raises:
        ValueError: an unknown size, or a command that failed.
    """
    settings = {"size": size, "dtype": dtype, "seconds": duration}
    figures: list[MemoryResult] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_recordings([duration], folder / "audio")
        for stored in dict.fromkeys((dtype, "float32")):
            log(f"writing random weights of {size} in {stored}")
            parameters = save_random_checkpoint(size, folder / stored, DTYPES[stored])
            weights = parameters * DTYPES[dtype].itemsize
            for name, line in _commands(folder, stored, dtype, device, peers):
                log(f"{name}, stored in {stored}")
                start = time.perf_counter()
                peak = peak_bytes_of(line)
                figures.append(
                    MemoryResult(
                        name,
                        stored,
                        weights / 2**20,
                        None if peak is None else peak / 2**20,
                        None if peak is None else peak / weights,
                        time.perf_counter() - start,
                    )
                )
    report = {"suite": "memory", **run_environment(device), "settings": settings}
    return {**report, "figures": [asdict(figure) for figure in figures]}


def _commands(
    folder: Path, stored: str, dtype: str, device: torch.device, peers: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the command line of each contender."""
    checkpoint, audio = folder / stored, folder / "audio"
    options = [f"audio={audio}", f"output={folder / f'ours-{stored}'}", f"model={checkpoint}"]
    yield "w2v-attn extract", [*MODULE, "w2v_attn", "extract", *options, f"dtype={dtype}", f"device={device}"]
    if "none" not in peers:
        output = str(folder / f"loop-{stored}")
        yield "transformers loop", [*MODULE, LOOP, str(checkpoint), str(audio), output, dtype, str(device), "1"]


def save_random_checkpoint(size: str, folder: Path, dtype: torch.dtype) -> int:
    """Write a checkpoint with random weights, shard by shard, so that no more than a shard is in memory.

    Args:
        size: Size of the model.
        folder: The folder to write.
        dtype: Dtype of the weights.

    Returns:
        The number of parameters.
    """
    import transformers
    from transformers import Wav2Vec2FeatureExtractor

    family, _ = SIZES[size]
    config = model_config(size)
    with torch.device("meta"):
        model: nn.Module = getattr(transformers, f"{family}Model")(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    extractor = getattr(transformers, f"{family.removesuffix('Audio')}FeatureExtractor", Wav2Vec2FeatureExtractor)
    extractor(do_normalize=True).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    files: dict[str, str] = {}
    for number, shard in enumerate(_shards(model.state_dict(), dtype), 1):
        name = f"model-{number:05d}.safetensors"
        tensors = {key: _random(key, shape, generator).to(dtype) for key, shape in shard.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def _shards(tensors: dict[str, Tensor], dtype: torch.dtype) -> Iterator[dict[str, torch.Size]]:
    """Yield the names and shapes of the tensors of each file."""
    shard, size = dict[str, torch.Size](), 0
    for name, tensor in tensors.items():
        shard[name] = tensor.shape
        size += tensor.numel() * dtype.itemsize
        if size > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return a random weight, of a scale that keeps activations finite through many blocks."""
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    scale = 0.02 if len(shape) == 1 else (0.5 / shape[1:].numel()) ** 0.5
    return torch.empty(shape).normal_(0.0, scale, generator=generator)


def tables(report: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Yield (title, header, rows)."""
    settings = report["settings"]
    rows = [
        (
            f["command"],
            f["stored"],
            f"{f['weights_mib']:.0f}",
            "–" if f["peak_mib"] is None else f"{f['peak_mib']:.0f}",
            "–" if f["ratio"] is None else f"{f['ratio']:.2f}",
            f"{f['seconds']:.0f}",
        )
        for f in report["figures"]
    ]
    header = ("command", "stored in", "weights MiB", "peak MiB", "peak / weights", "s")
    title = f"{settings['size']}, {settings['dtype']}, one recording of {settings['seconds']:g} s, with start-up"
    yield f"{title} ({report['device']}, {report['threads']} threads, torch {report['torch']})", header, rows
