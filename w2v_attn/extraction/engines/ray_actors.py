"""The Ray engine: an encoder in each of several actors of a cluster; Ray Data sends them rows and collects outcomes."""

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

# How often an actor that died is replaced, and its chunk retried: a recording that kills its process must not do so
# for ever.
MAX_RETRIES = 3


class RayActors:
    """An extractor on a Ray cluster. Used as a context manager.

    The output and the recordings must be on a file system that all machines mount at the same path, and the package
    must be installed on all of them. RAY_ADDRESS names the cluster; without it one is started on this machine.

    Args:
        job: What is extracted, and with which model.
        workers: Actors, each with a GPU if the cluster has any, else with its share of the cores; None: one for each
            GPU, or one for each machine if there is none.

    Raises:
        ValueError: an invalid job.
        RunError: the cluster cannot run it.
    """

    def __init__(self, job: ExtractionJob, *, workers: int | None):
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ValueError(f"engine=ray needs it ({error}): pip install 'w2v_attn[ray]'") from error

        self._ray, self._job = ray, job
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs every step
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
        """Leave the cluster; the actors end."""
        self._ray.shutdown()

    def extract(
        self, blocks: Sequence[Block], *, batch_frames: int, interrupted: Callable[[], bool] = lambda: False
    ) -> Outcomes:
        """See `Extractor`. At its end, also an early one, it leaves the cluster, so nothing is written afterwards."""
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
    """An actor: chunks of blocks -> outcomes, one in each output row."""

    def __init__(self, job: ExtractionJob, batch_frames: int, folder: str):
        os.chdir(folder)  # paths are relative to it
        self._worker, self._batch_frames = InProcessExtractor.load(job), batch_frames

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        found = [
            pickle.dumps(outcome)
            for blocks in batch["blocks"]
            for outcome in self._worker.extract(pickle.loads(blocks), batch_frames=self._batch_frames)
        ]
        return {"outcome": found}


def _divide(resources: Mapping[str, float], machines: int, workers: int | None) -> tuple[int, dict[str, float]]:
    """Return the number of actors, and the resources of each."""
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    count = workers or gpus or machines
    # An actor on a GPU uses a core too, although Ray counts none.
    return count, {"num_gpus": min(1, gpus / count)} if gpus else {"num_cpus": max(1, cpus // count)}


def _what_failed(error: Exception) -> Exception:
    """Return what to raise: the error of the actor if it gave a reason."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError | RunError):
        return type(cause)(str(cause))
    return RunError(f"the cluster failed: {error}")
