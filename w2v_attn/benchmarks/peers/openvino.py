"""OpenVINO."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.peer import FinalFeatures, Subject, Unavailable, converting, library, need_cpu

# Its default is bfloat16 where the processor has it, whatever the model's dtype.
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVino:
    """With a dynamic time axis, forced to the dtype that is compared, as many threads as torch.

    in_streams: whether each core takes a recording of its own; else all cores take one after another.
    """

    batch, quadratic = 1, False

    def __init__(self, *, in_streams: bool = False):
        self.name = "OpenVINO, in streams" if in_streams else "OpenVINO"
        self._in_streams = in_streams

    def prepare(self, subject: Subject) -> None:
        need_cpu(subject.device, "OpenVINO")
        openvino = library("openvino")
        precision = PRECISIONS[subject.dtype]
        threads = torch.get_num_threads()
        streams = threads if self._in_streams else 1
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "THROUGHPUT" if self._in_streams else "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
        }
        with converting("OpenVINO's conversion"), torch.no_grad():
            model = openvino.convert_model(
                FinalFeatures(subject.reference).eval(),
                example_input=torch.randn(1, 16_000),
                input=[("waveform", [1, -1])],
            )
            compiled = openvino.compile_model(model, "CPU", hints)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != precision:
            raise Unavailable(f"it computes in {used} on this processor")
        self._requests = openvino.AsyncInferQueue(compiled, streams)
        self._requests.set_callback(lambda request, found: found.append(_features(request)))

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        found: list[list[Tensor]] = [[] for _ in waveforms]
        for number in sorted(range(len(waveforms)), key=lambda number: -len(waveforms[number])):
            self._requests.start_async([waveforms[number][None].numpy()], found[number])
        self._requests.wait_all()
        return [features for (features,) in found]


def _features(request: Any) -> Tensor:
    """[frames, channels]; a copy, for the request is used again."""
    return torch.from_numpy(request.get_output_tensor().data[0].copy())
