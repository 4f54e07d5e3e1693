"""What a checkpoint is, as rows for a table."""

from collections.abc import Iterator

from w2v_attn.pretrained.adapters import has_adapters, languages, listed
from w2v_attn.pretrained.checkpoints import Checkpoint
from w2v_attn.pretrained.tokenizers import vocabulary_languages

NORMS = {
    "group": "group norm over time in the first convolution",
    "layer": "layer norm in every convolution",
}


def describe(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """(name, value) of what a user wants to know before trusting a checkpoint."""
    config, model = checkpoint.model.config, checkpoint.model
    yield "family", config.model_type
    yield "architecture", type(model).__name__
    yield "parameters", f"{sum(p.numel() for p in model.parameters()):,}"
    yield (
        "blocks",
        f"{config.num_hidden_layers} × {config.hidden_size} channels, {config.num_attention_heads} heads, "
        f"feed-forward {config.intermediate_size}",
    )
    frontend = NORMS.get(getattr(config, "feat_extract_norm", "layer"), "")
    stable = getattr(config, "do_stable_layer_norm", False)
    yield "norm style", f"{frontend}; {'layer norm before each block' if stable else 'layer norm after each block'}"
    yield "dtype", str(model.dtype).removeprefix("torch.")
    yield "sample rate", f"{checkpoint.sample_rate:,} Hz"
    normalised = "mean 0, variance 1" if checkpoint.do_normalize else "as recorded"
    yield "input", f"{normalised} (says {checkpoint.normalize_from})"
    if has_adapters(config):
        yield "language", checkpoint.language or "not known: neither the tokenizer nor model.language names it"
        beside = languages(path.name for path in checkpoint.folder.iterdir())
        yield "adapters", f"{config.adapter_attn_dim} channels in each block; in files here: {listed(beside) or 'none'}"
        if spoken := vocabulary_languages(checkpoint.folder):
            yield "vocabularies", f"{len(spoken):,}: {listed(spoken, 20)}"
    yield "missing keys", _listed(checkpoint.missing)
    yield "unexpected keys", _listed(checkpoint.unexpected)


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(keys) if keys else "none"
