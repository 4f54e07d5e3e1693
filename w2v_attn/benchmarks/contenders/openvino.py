"""OpenVINO."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.benchmarks.contenders.contender import (
    FinalFeatures,
    Subject,
    Unavailable,
    converting,
    library,
    need_cpu,
)

# Its default is bfloat16 where the processor has it, whatever the model's dtype.
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVino:
    """One by one, with a dynamic time axis, forced to the dtype that is compared, as many threads as torch."""

    name, batch, quadratic = "OpenVINO", 1, False

    def prepare(self, subject: Subject) -> None:
        need_cpu(subject.device, "OpenVINO")
        openvino = library("openvino")
        precision = PRECISIONS[subject.dtype]
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
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
        self._request = compiled.create_infer_request()

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(self._request.infer([wave[None].numpy()])[0][0]) for wave in waveforms]
