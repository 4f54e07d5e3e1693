"""Choice of the engine that extracts: this process, several processes on this machine, or a Ray cluster."""

from contextlib import AbstractContextManager, nullcontext

import torch

from w2v_attn.encoder.waveforms import find_device
from w2v_attn.extraction.extractor import ExtractionJob, Extractor, InProcessExtractor
from w2v_attn.runs.rank import Rank

LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
AUTO = "auto"


def open_extractor(
    job: ExtractionJob, *, engine: str, workers: int | None, rank: Rank
) -> AbstractContextManager[Extractor]:
    """Return an extractor as a context manager.

    Args:
        job: What is extracted, and with which model.
        engine: One of ENGINES.
        workers: Processes with an encoder each; None: one for each GPU, or one if there is none.
        rank: The rank of this process; with other ranks, each has its own rows and its own GPU.

    Raises:
        ValueError: an unknown engine, or an invalid job.
        RunError: a process, or the cluster, does not start.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be {' or '.join(ENGINES)}, got {engine}")
    if not rank.is_alone and (engine == RAY or workers not in (None, 1)):
        raise ValueError(f"rank {rank} is one process: leave out engine={engine} and workers={workers}")
    if engine == RAY:
        from w2v_attn.extraction.engines.ray_actors import RayActors

        return RayActors(job, workers=workers)
    devices = _devices(job.model["device"], workers, rank)
    if len(devices) == 1:
        return nullcontext(InProcessExtractor.load(job, device=devices[0]))
    from w2v_attn.extraction.engines.local_processes import LocalProcesses

    on_cpu = find_device(devices[0]).type == "cpu"
    return LocalProcesses(job, devices, threads=max(1, torch.get_num_threads() // len(devices)) if on_cpu else None)


def _devices(device: str, workers: int | None, rank: Rank) -> list[str]:
    """Return torch's device names, one for each process."""
    found = find_device(device)
    if device != AUTO or found.type != "cuda":
        return [device] * (workers or 1)
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if not rank.is_alone:
        return [gpus[rank.local_rank % len(gpus)]]
    return [gpus[number % len(gpus)] for number in range(workers or len(gpus))]
