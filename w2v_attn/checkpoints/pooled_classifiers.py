"""Classifiers that pool frames by attention or by statistics, where those of transformers take the mean.

This file imports only torch and transformers: it is copied into the folder of such a model, so that transformers loads
the model without this package: `pipeline("audio-classification", folder, trust_remote_code=True)`.

Source: attention pooling: P. Safari et al., "Self-Attention Encoding and Pooling for Speaker Recognition", section 2.2;
statistics: D. Snyder et al., "X-Vectors", section 2.1.
"""

import sys
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("mean", "attention", "statistics")
SUFFIX = "Pooled"


class PooledClassification:
    """A sequence classifier of a Hugging Face family with another pooling, given by `config.pooling`.

    The head's parameters have names of their own, so that the original class cannot silently load them as those of
    mean pooling.
    """

    config: Any

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        width = config.classifier_proj_size
        del self.classifier  # type: ignore[attr-defined]
        self.pooled_score = nn.Linear(width, 1) if config.pooling == "attention" else None
        self.pooled_classifier = nn.Linear(width * (2 if config.pooling == "statistics" else 1), config.num_labels)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Return the logits [B, labels] of waveforms [B, samples]; attention_mask: [B, samples], 1 = a real sample."""
        weighted = self.config.use_weighted_layer_sum
        base = getattr(self, self.base_model_prefix)  # type: ignore[attr-defined]
        wanted = {"output_hidden_states": True} if weighted else {}
        outputs = base(input_values, attention_mask=attention_mask, **kwargs, **wanted)
        hidden = outputs.last_hidden_state
        if weighted:
            stacked = torch.stack(outputs.hidden_states, dim=1)
            hidden = (stacked * self.layer_weights.softmax(-1).view(-1, 1, 1)).sum(1)  # type: ignore[attr-defined]
        hidden = self.projector(hidden)  # type: ignore[attr-defined]
        if attention_mask is None:
            real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        else:
            lengths = self._get_feat_extract_output_lengths(attention_mask.sum(-1))  # type: ignore[attr-defined]
            if weighted:  # the layers of SEW have one frame for several
                lengths = lengths // getattr(self.config, "squeeze_factor", 1)
            real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        logits = self.pooled_classifier(self._pool(hidden, real))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels.view(-1))
        return SequenceClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def _pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Pool hidden states [B, T, C] with a mask, bool [B, T], to [B, C], or to [B, 2 C] of mean and deviation."""
        if self.pooled_score is not None:
            scores = self.pooled_score(hidden)[..., 0].masked_fill(~real, float("-inf"))
            return (scores.float().softmax(-1).to(hidden.dtype)[..., None] * hidden).sum(1)
        weights = (real / real.sum(-1, keepdim=True)).to(hidden.dtype)[..., None]
        mean = (weights * hidden).sum(1)
        variance = (weights * (hidden - mean[:, None]) ** 2).sum(1)
        return torch.cat([mean, torch.sqrt(variance + 1e-7)], -1)


def pooled_class(stock: type) -> type:
    """Return the pooled subclass of a Hugging Face sequence classifier; each subclass is created once."""
    name = stock.__name__.replace("ForSequenceClassification", f"{SUFFIX}ForSequenceClassification")
    made = sys.modules[__name__].__dict__.get(name)
    if made is None:
        made = type(
            name, (PooledClassification, stock), {"__module__": __name__, "__doc__": PooledClassification.__doc__}
        )
        setattr(sys.modules[__name__], name, made)
    return made


def __getattr__(name: str) -> type:
    """Create a pooled class on access by name, as transformers and pickle access it."""
    stock = getattr(transformers, name.replace(SUFFIX, ""), None) if SUFFIX in name else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pooled_class(stock)
