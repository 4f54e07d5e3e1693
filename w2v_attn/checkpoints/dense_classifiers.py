"""Classifiers with the head of "Wav2Vec2ForSpeechClassification", a class that transformers never had.

Many public checkpoints of emotions, genres and languages have it, among them audeering's of arousal, dominance and
valence: pooling over frames, a dense layer as wide as the encoder, tanh, an output layer. It is recognised by the names
of its weights: some configs call it Wav2Vec2ForSequenceClassification, whose head has other weights.

Source: M. Farahani, https://github.com/m3hrdadfi/soxan; J. Wagner et al., "Dawn of the Transformer Era in Speech
Emotion Recognition: Closing the Valence Gap" (2023).
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from w2v_attn.checkpoints.checkpoint_error import CheckpointError

POOLINGS = {
    "mean": lambda hidden: hidden.mean(1),
    "sum": lambda hidden: hidden.sum(1),
    "max": lambda hidden: hidden.amax(1),
}
SUFFIX = "Dense"


class DenseHead(nn.Module):
    """A dense layer, tanh, and an output layer."""

    def __init__(self, config: Any):
        super().__init__()
        self.dropout = nn.Dropout(config.final_dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the logits [B, labels] of pooled frames [B, C]."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(pooled)))))


class DenseClassification:
    """A sequence classifier of a Hugging Face family with such a head; `config.pooling_mode` is its pooling."""

    config: Any

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        del self.projector  # type: ignore[attr-defined]
        self.classifier = DenseHead(config)
        mode = getattr(config, "pooling_mode", "mean")
        if mode not in POOLINGS:
            raise CheckpointError(f"the config has pooling_mode={mode}, expected one of {', '.join(POOLINGS)}")

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Return the logits [B, labels] of waveforms [B, samples], pooled over all frames as when it was trained."""
        base = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        hidden = base(input_values, attention_mask=attention_mask, **kwargs).last_hidden_state
        logits = self.classifier(POOLINGS[getattr(self.config, "pooling_mode", "mean")](hidden))
        return SequenceClassifierOutput(logits=logits)


@lru_cache(None)
def dense_class(stock: type) -> type:
    """Return the subclass of a Hugging Face sequence classifier with such a head."""
    name = stock.__name__.replace("ForSequenceClassification", f"{SUFFIX}ForSequenceClassification")
    return type(name, (DenseClassification, stock), {"__module__": __name__, "__doc__": DenseClassification.__doc__})
