"""Classifiers that pool frames by attention or by statistics, which stock transformers' mean over frames cannot.

This file knows torch and transformers alone: a copy of it goes into the folder of such a model, so that stock
transformers loads it without this package: `pipeline("audio-classification", folder, trust_remote_code=True)`.

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
    """Stock's classifier of a family with another pooling; `config.pooling` says which.

    The names of its head are its own, so that stock's class cannot take its weights for a mean's in silence.
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
        """Logits [B, labels] of waveforms [B, samples]; attention_mask: [B, samples], 1 = a real sample."""
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
            if weighted:  # SEW's layers have one frame for some
                lengths = lengths // getattr(self.config, "squeeze_factor", 1)
            real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        logits = self.pooled_classifier(self._pool(hidden, real))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels.view(-1))
        return SequenceClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def _pool(self, hidden: Tensor, real: Tensor) -> Tensor:
        """[B, T, C], bool [B, T] -> [B, C], or [B, 2 C] of mean and deviation."""
        if self.pooled_score is not None:
            scores = self.pooled_score(hidden)[..., 0].masked_fill(~real, float("-inf"))
            return (scores.float().softmax(-1).to(hidden.dtype)[..., None] * hidden).sum(1)
        weights = (real / real.sum(-1, keepdim=True)).to(hidden.dtype)[..., None]
        mean = (weights * hidden).sum(1)
        variance = (weights * (hidden - mean[:, None]) ** 2).sum(1)
        return torch.cat([mean, torch.sqrt(variance + 1e-7)], -1)


def pooled_class(stock: type) -> type:
    """The class of a family's classifier with another pooling, made once from stock's."""
    name = stock.__name__.replace("ForSequenceClassification", f"{SUFFIX}ForSequenceClassification")
    made = sys.modules[__name__].__dict__.get(name)
    if made is None:
        made = type(
            name, (PooledClassification, stock), {"__module__": __name__, "__doc__": PooledClassification.__doc__}
        )
        setattr(sys.modules[__name__], name, made)
    return made


def __getattr__(name: str) -> type:
    """Makes the class when somebody asks for it by name, as transformers and pickle do."""
    stock = getattr(transformers, name.replace(SUFFIX, ""), None) if SUFFIX in name else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pooled_class(stock)
