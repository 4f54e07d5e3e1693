"""Which engine extracts: this process, several on this machine, or a cluster's."""

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
    """An extractor, to be opened while it is used.

    engine: of ENGINES. workers: processes with an encoder each; None: one for each GPU, and one where there is none.
    rank: of this process; with others beside it, each has a part of the rows and a GPU of its own.

    Raises:
        ValueError: there is no such engine, or what the job says is wrong.
        RunError: a process, or the cluster, cannot begin.
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
    """torch's names, one for each process."""
    found = find_device(device)
    if device != AUTO or found.type != "cuda":
        return [device] * (workers or 1)
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if not rank.is_alone:
        return [gpus[rank.local_rank % len(gpus)]]
    return [gpus[number % len(gpus)] for number in range(workers or len(gpus))]
