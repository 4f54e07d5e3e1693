"""A cluster of Ray's: an encoder in each of several actors, and Ray Data that brings them rows and takes outcomes."""

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from w2v_attn.extraction.extractor import ExtractionJob, ExtractorDescription, InProcessExtractor, Outcomes, chunks
from w2v_attn.extraction.store import store_of
from w2v_attn.run_error import RunError
from w2v_attn.runs.rank import Block

# Times that an actor which died is replaced, and that its chunk is tried again: a recording that kills whoever works on
# it must not do so for ever.
MAX_RETRIES = 3


class RayActors:
    """An extractor on a cluster. Open while it is used.

    The output, and the recordings, are on a file system that all machines have under the same name, and so is this
    package. RAY_ADDRESS says where the cluster is; without it one is started on this machine.

    workers: actors, each with a GPU where the cluster has any, and else with its block of the cores; None: one for each
    GPU, or for each machine where there is none.

    Raises:
        ValueError: what the job says is wrong. RunError: the cluster cannot do it.
    """

    def __init__(self, job: ExtractionJob, *, workers: int | None):
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ValueError(f"engine=ray needs it ({error}): pip install 'w2v_attn[ray]'") from error

        self._ray, self._job = ray, job
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every step
        ray.init(address=os.environ.get("RAY_ADDRESS"), logging_level=logging.ERROR, include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            if len(ray.nodes()) > 1 and (why := store_of(job.task.layout).single_machine_reason):
                raise ValueError(f"{why}; the cluster has {len(ray.nodes())} machines")
            self._workers, self._needs = _divide(ray.cluster_resources(), len(ray.nodes()), workers)
            self.description = self._ask_one()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayActors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster; actors end."""
        self._ray.shutdown()

    def extract(
        self, blocks: Sequence[Block], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`. At its end, also one before all is done, it leaves the cluster: nobody writes on then."""
        given = [{"blocks": pickle.dumps(chunk)} for chunk in chunks(blocks, self._workers)]
        if not given:
            return
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", self._ray.util.annotations.RayDeprecationWarning
            )  # of MAX_RETRIES, until 2.64
            outcomes = self._ray.data.from_items(given, override_num_blocks=len(given)).map_batches(
                _Actor,
                fn_constructor_args=(self._job, batch_frames, os.getcwd()),
                batch_size=1,
                compute=self._ray.data.ActorPoolStrategy(size=min(self._workers, len(given))),
                max_restarts=MAX_RETRIES,
                max_task_retries=MAX_RETRIES,
                **self._needs,
            )
        try:
            for outcome in outcomes.iter_rows():
                yield pickle.loads(outcome["outcome"])
                if interrupted():
                    return
        except self._ray.exceptions.RayError as error:
            raise _what_failed(error) from error
        finally:
            self.close()

    def _ask_one(self) -> ExtractorDescription:
        describe = self._ray.remote(**self._needs)(_describe)
        try:
            return self._ray.get(describe.remote(self._job, os.getcwd()))
        except self._ray.exceptions.RayError as error:
            raise _what_failed(error) from error


def _describe(job: ExtractionJob, folder: str) -> ExtractorDescription:
    os.chdir(folder)
    return InProcessExtractor.load(job).description


class _Actor:
    """Chunks of rows -> outcomes, one in each row of what comes out."""

    def __init__(self, job: ExtractionJob, batch_frames: int, folder: str):
        os.chdir(folder)  # what names of files are relative to
        self._worker, self._batch_frames = InProcessExtractor.load(job), batch_frames

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        found = [
            pickle.dumps(outcome)
            for blocks in batch["blocks"]
            for outcome in self._worker.extract(pickle.loads(blocks), batch_frames=self._batch_frames)
        ]
        return {"outcome": found}


def _divide(resources: Mapping[str, float], machines: int, workers: int | None) -> tuple[int, dict[str, float]]:
    """Actors, and what each of them needs."""
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    count = workers or gpus or machines
    # An actor on a GPU takes a core too, by Ray's own count none.
    return count, {"num_gpus": min(1, gpus / count)} if gpus else {"num_cpus": max(1, cpus // count)}


def _what_failed(error: Exception) -> Exception:
    """What to raise: as the actor did, where it said why."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError | RunError):
        return type(cause)(str(cause))
    return RunError(f"the cluster failed: {error}")
