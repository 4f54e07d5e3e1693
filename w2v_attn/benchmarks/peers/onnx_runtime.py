"""ONNX Runtime."""

from collections.abc import Sequence

import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.peer import FinalFeatures, Subject, Unavailable, converting, library, need_cpu

INPUT = "waveform"


class OnnxRuntime:
    """One by one, exported with a dynamic time axis, all optimisations of graphs, as many threads as torch."""

    # The export writes attention as products and a softmax.
    name, batch, quadratic = "ONNX Runtime", 1, True

    def prepare(self, subject: Subject) -> None:
        need_cpu(subject.device, "ONNX Runtime")
        if subject.dtype != torch.float32:
            raise Unavailable("its CPU kernels have no bfloat16")
        runtime = library("onnxruntime")
        for needed in ("onnx", "onnxscript"):
            library(needed)
        path = str(subject.folder / "model.onnx")
        with converting("the export to ONNX"), torch.no_grad():
            torch.onnx.export(
                FinalFeatures(subject.reference).eval(),
                (torch.randn(1, 16_000),),
                path,
                input_names=[INPUT],
                dynamo=True,
                dynamic_shapes={INPUT: {1: torch.export.Dim("samples", min=400, max=2**28)}},
                verbose=False,
            )
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(self._session.run(None, {INPUT: wave[None].numpy()})[0][0]) for wave in waveforms]
