"""CTranslate2."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2v_attn.benchmarks.peers.peer import Subject, Unavailable, converting, library, need_cpu


class CTranslate2:
    """One by one, as many threads as torch. It takes checkpoints with LayerNorm after every convolution."""

    name, batch, quadratic = "CTranslate2", 1, True

    def prepare(self, subject: Subject) -> None:
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
            self.run([torch.randn(16_000)])  # it looks at the sizes of the convolutions only now

    def run(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [self._one(wave) for wave in waveforms]

    def _one(self, waveform: Tensor) -> Tensor:
        view = self._library.StorageView.from_array(waveform[None, None].numpy())
        features = self._model.encode(view, to_cpu=True).to(self._library.DataType.float32)
        return torch.from_numpy(np.array(features)[0])


def _converter(subject: Subject, source: str) -> Any:
    """CTranslate2's converter, given the model at hand for a checkpoint; it wants a CTC model and a vocabulary."""
    from transformers import Wav2Vec2ForCTC

    config = deepcopy(subject.config)
    config.return_hidden = True  # its word for: the final features, not the CTC head's scores
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
