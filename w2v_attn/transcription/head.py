"""The head of a fine-tuned model, on frames that its encoder computed in another way than the model itself does."""

import copy
import sys
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Wav2Vec2BaseModelOutput

from w2v_attn.encoder.encoder import Encoder


def run_on_frames(model: Any, encoder: Encoder, waveform: Tensor) -> Any:
    """Return what a model returns for one recording, with the frames of an encoder.

    Its own forward runs, so every head computes what it computes in the model: only the encoder is another one.

    Args:
        model: A Hugging Face model with a head.
        encoder: An encoder with the weights of the model.
        waveform: float32 [samples], not normalised.
    """
    weighted = getattr(model.config, "use_weighted_layer_sum", False)
    blocks = [f"layer_{number:02d}" for number in range(1, encoder.num_layers + 1)]
    names = ["embed", *blocks, "final"] if weighted else ["final"]
    [frames] = encoder.extract([waveform], names)
    hidden_states = tuple(frames[name][None] for name in ("embed", *blocks)) if weighted else None
    # A shallow copy, so that other threads see the model unchanged; the parameters are shared.
    with_frames = copy.copy(model)
    with_frames._modules = {
        **model._modules,
        model.base_model_prefix: _Frames(model, frames["final"][None], hidden_states),
    }
    return with_frames(waveform[None])


class _Frames(nn.Module):
    """A base model that returns these frames, [1, T, C], for any input."""

    def __init__(self, model: Any, last: Tensor, hidden_states: tuple[Tensor, ...] | None):
        super().__init__()
        # Some heads take the hidden states by their place in the output.
        place = getattr(sys.modules[type(model).__module__], "_HIDDEN_STATES_START_POSITION", 1)
        if place == 2:
            self._output = Wav2Vec2BaseModelOutput(last, last, hidden_states)  # type: ignore[arg-type]
        else:
            self._output = BaseModelOutput(last, hidden_states)  # type: ignore[arg-type]

    def forward(self, *_: Any, **__: Any) -> Any:
        return self._output
