"""Contenders that convert the model to a format of their own: ONNX Runtime, OpenVINO and CTranslate2."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.contender import (
    FinalFeatures,
    Subject,
    Unavailable,
    converting,
    library,
    need_cpu,
)
from w2v_attn.encoder.cost import SAMPLE_RATE

# The name of the input in the exported graph.
INPUT = "waveform"
# OpenVINO's default is bfloat16 where the processor supports it, whatever the dtype of the model.
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OnnxRuntime:
    """ONNX Runtime one by one: a dynamic time axis, all graph optimisations, as many threads as torch."""

    # The export writes attention as products and a softmax.
    name, batch, quadratic = "ONNX Runtime", 1, True

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
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
                (torch.randn(1, SAMPLE_RATE),),
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
        """See `Contender`."""
        return [torch.from_numpy(self._session.run(None, {INPUT: wave[None].numpy()})[0][0]) for wave in waveforms]


class OpenVino:
    """OpenVINO with a dynamic time axis in the dtype that is compared, with as many threads as torch.

    Args:
        in_streams: Whether each core computes a recording of its own; otherwise all cores compute one at a time.
    """

    batch, quadratic = 1, False

    def __init__(self, *, in_streams: bool = False):
        self.name = "OpenVINO, in streams" if in_streams else "OpenVINO"
        self._in_streams = in_streams

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
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
                example_input=torch.randn(1, SAMPLE_RATE),
                input=[("waveform", [1, -1])],
            )
            compiled = openvino.compile_model(model, "CPU", hints)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != precision:
            raise Unavailable(f"it computes in {used} on this processor")
        self._requests = openvino.AsyncInferQueue(compiled, streams)
        self._requests.set_callback(lambda request, found: found.append(_features(request)))

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        found: list[list[Tensor]] = [[] for _ in waveforms]
        for number in sorted(range(len(waveforms)), key=lambda number: -len(waveforms[number])):
            self._requests.start_async([waveforms[number][None].numpy()], found[number])
        self._requests.wait_all()
        return [features for (features,) in found]


def _features(request: Any) -> Tensor:
    """Return a copy of the features, [frames, channels], because the request is reused."""
    return torch.from_numpy(request.get_output_tensor().data[0].copy())


class CTranslate2:
    """CTranslate2 one by one, with as many threads as torch; only for layer-norm checkpoints."""

    name, batch, quadratic = "CTranslate2", 1, True

    def prepare(self, subject: Subject) -> None:
        """See `Contender`."""
        need_cpu(subject.device, "CTranslate2")
        config = subject.config
        if config.model_type != "wav2vec2" or config.feat_extract_norm != "layer" or not config.do_stable_layer_norm:
            raise Unavailable("its converter takes layer-norm checkpoints only (wav2vec2-large-lv60, XLS-R)")
        self._library = library("ctranslate2")
        compute = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[subject.dtype]
        if compute not in self._library.get_supported_compute_types("cpu"):
            raise Unavailable(f"it has no {compute} on this processor")
        source, converted = str(subject.folder / "source"), str(subject.folder / "converted")
        with converting("CTranslate2's conversion"), torch.no_grad():
            _converter(subject, source).convert(converted)
            self._model = self._library.models.Wav2Vec2(
                converted, device="cpu", compute_type=compute, intra_threads=torch.get_num_threads(), inter_threads=1
            )
            self.run([torch.randn(SAMPLE_RATE)])  # sizes of the convolutions are checked at the first run

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """See `Contender`."""
        return [self._one(wave) for wave in waveforms]

    def _one(self, waveform: Tensor) -> Tensor:
        view = self._library.StorageView.from_array(waveform[None, None].numpy())
        features = self._model.encode(view, to_cpu=True).to(self._library.DataType.float32)
        return torch.from_numpy(np.array(features)[0])


def _converter(subject: Subject, source: str) -> Any:
    """Return CTranslate2's converter for the model in memory; it needs a CTC model and a vocabulary."""
    from transformers import Wav2Vec2ForCTC

    config = deepcopy(subject.config)
    config.return_hidden = True  # the final features, not the logits of the CTC head
    config.save_pretrained(source)
    model = Wav2Vec2ForCTC(config)
    model.wav2vec2 = deepcopy(subject.reference)
    model.wav2vec2.config = config

    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {str(number): number for number in range(config.vocab_size)}

    class Converter(library("ctranslate2.converters").TransformersConverter):
        def load_model(self, *_: object, **__: object) -> Any:
            return model

        def load_tokenizer(self, *_: object, **__: object) -> Any:
            return Tokenizer()

    return Converter(source)
