"""What a checkpoint is, as rows for a table."""

from collections.abc import Iterator
from typing import Any

from w2v_attn.checkpoints.adapters import adapter_languages, has_adapters, join_languages
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.tokenizers import vocabulary_languages

NORMS = {
    "group": "group norm over time in the first convolution",
    "layer": "layer norm in every convolution",
}


def describe_checkpoint(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """(name, value) of what a user wants to know before trusting a checkpoint."""
    config, model = checkpoint.model.config, checkpoint.model
    yield "format", checkpoint.format
    yield "family", config.model_type
    yield "architecture", type(model).__name__
    yield "parameters", f"{sum(p.numel() for p in model.parameters()):,}"
    yield (
        "blocks",
        f"{config.num_hidden_layers} × {config.hidden_size} channels, {config.num_attention_heads} heads, "
        f"feed-forward {config.intermediate_size}",
    )
    yield "norm style", f"{_frontend(config)}; {_blocks(config)}"
    if (positions := _positions(config)) is not None:
        yield "positions", positions
    yield "dtype", str(model.dtype).removeprefix("torch.")
    yield "sample rate", f"{checkpoint.sample_rate:,} Hz"
    normalised = "mean 0, variance 1" if checkpoint.do_normalize else "as recorded"
    read = "waveform" if checkpoint.filter_banks is None else f"{checkpoint.filter_banks.num_mel_bins} mel filters"
    yield "input", f"{read}, {normalised} (says {checkpoint.normalize_source})"
    if has_adapters(config):
        yield "language", checkpoint.language or "not known: neither the tokenizer nor model.language names it"
        beside = adapter_languages(path.name for path in checkpoint.folder.iterdir())
        yield (
            "adapters",
            f"{config.adapter_attn_dim} channels in each block; in files here: {join_languages(beside) or 'none'}",
        )
        if spoken := vocabulary_languages(checkpoint.folder):
            yield "vocabularies", f"{len(spoken):,}: {join_languages(spoken, 20)}"
    yield "missing keys", _listed(checkpoint.missing)
    yield "unexpected keys", _listed(checkpoint.unexpected)


def _frontend(config: Any) -> str:
    if not hasattr(config, "conv_dim"):
        return "no convolutions before the blocks"
    return NORMS.get(getattr(config, "feat_extract_norm", "layer"), "")


def _blocks(config: Any) -> str:
    if hasattr(config, "conv_depthwise_kernel_size"):
        return "Conformer blocks, layer norm before each part"
    stable = getattr(config, "do_stable_layer_norm", False)
    return "layer norm before each block" if stable else "layer norm after each block"


def _positions(config: Any) -> str | None:
    """What positions add to the scores; None where nothing is added."""
    if hasattr(config, "max_bucket_distance"):
        return f"a gated bias in {config.num_buckets} buckets, up to {config.max_bucket_distance} frames away"
    kind = getattr(config, "position_embeddings_type", None)
    if kind == "relative_key":
        reach = config.left_max_position_embeddings, config.right_max_position_embeddings
        return f"{kind}, up to {reach[0]} frames before and {reach[1]} after"
    return kind


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(keys) if keys else "none"
