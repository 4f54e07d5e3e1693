"""A summary of a checkpoint, as rows of a table."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from w2v_attn.checkpoints.adapters import adapter_languages, has_adapters, join_languages
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.classification_heads import describe_outputs
from w2v_attn.checkpoints.ctc_head import describe_ctc_head, read_ctc_head
from w2v_attn.checkpoints.encoder_parts import base_encoder, encoder_config, encoder_parts
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.processor_lm import describe_processor_lm, has_processor_lm
from w2v_attn.checkpoints.tokenizers import has_vocabulary, vocabulary_languages

NORMS = {
    "group": "group norm over time in the first convolution",
    "layer": "layer norm in every convolution",
}


def count_parameters(model: Any) -> dict[str, int]:
    """Return the number of parameters of each part of a model, and of its head; they add up to all."""
    base = base_encoder(model)
    parts = encoder_parts(base)
    modules = {
        "feature encoder": [*parts.convolutions],
        "feature projection": [parts.projection_norm, parts.projection],
        "positions": [parts.positions],
        "blocks": [parts.blocks],
        "adapter": [getattr(base, "adapter", None)],
        "other parts": [base],  # norms outside of the blocks, SEW's upsampling, the vector of masked frames
        "head": [model],
    }
    counted: set[nn.Parameter] = set()
    counts = dict[str, int]()
    for part, found in modules.items():
        new = {p for module in found if module is not None for p in module.parameters()} - counted
        counts[part] = sum(parameter.numel() for parameter in new)
        counted |= new
    return {part: count for part, count in counts.items() if count}


def describe_checkpoint(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows: format, architecture, sizes, input, language and the keys that did not match."""
    config, model = checkpoint.model.config, checkpoint.model
    yield "format", checkpoint.format
    yield "family", config.model_type
    yield "architecture", type(model).__name__
    yield from describe_outputs(config, type(model).__name__)
    if checkpoint.base_model is not None:
        yield "base model", checkpoint.base_model
    yield "parameters", f"{sum(p.numel() for p in model.parameters()):,}"
    for part, count in count_parameters(model).items():
        yield f"  {part}", f"{count:,}"
    sizes = encoder_config(config)
    yield (
        "blocks",
        f"{sizes.num_hidden_layers} × {sizes.hidden_size} channels, {sizes.num_attention_heads} heads, "
        f"feed-forward {sizes.intermediate_size}",
    )
    yield "norm style", f"{_frontend(sizes)}; {_blocks(model)}"
    if (positions := _positions(sizes)) is not None:
        yield "positions", positions
    yield "dtype", str(model.dtype).removeprefix("torch.")
    yield "sample rate", f"{checkpoint.sample_rate:,} Hz"
    normalized = "mean 0, variance 1" if checkpoint.do_normalize else "as recorded"
    read = "waveform" if checkpoint.filter_banks is None else f"{checkpoint.filter_banks.num_mel_bins} mel filters"
    yield "input", f"{read}, {normalized} (source: {checkpoint.normalize_source})"
    if has_adapters(config):
        yield "language", checkpoint.language or "unknown: neither the tokenizer nor model.language names it"
        available = adapter_languages(path.name for path in checkpoint.folder.iterdir())
        files = join_languages(available) or "none"
        yield "adapters", f"{config.adapter_attn_dim} channels in each block; adapter files: {files}"
        if spoken := vocabulary_languages(checkpoint.folder):
            yield "vocabularies", f"{len(spoken):,}: {join_languages(spoken, 20)}"
    if type(model).__name__.endswith("ForCTC") and has_vocabulary(checkpoint.folder):
        try:
            yield from describe_ctc_head(read_ctc_head(checkpoint))
        except CheckpointError as error:  # the encoder can be used nevertheless
            yield "CTC head", f"cannot be used: {error}"
    if has_processor_lm(checkpoint.folder):
        yield "language model", describe_processor_lm(checkpoint.folder)
    yield "missing keys", _listed(checkpoint.missing)
    yield "unexpected keys", _listed(checkpoint.unexpected)


def _frontend(config: Any) -> str:
    if not hasattr(config, "conv_dim"):
        return "no convolutions before the blocks"
    return NORMS.get(getattr(config, "feat_extract_norm", "layer"), "")


def _blocks(model: Any) -> str:
    if hasattr(model.config, "conv_depthwise_kernel_size"):
        return "Conformer blocks, layer norm before each module"
    first = encoder_parts(base_encoder(model)).norm_first
    return "layer norm before each block" if first else "layer norm after each block"


def _positions(config: Any) -> str | None:
    """Return what positions add to the attention scores; None if they add nothing."""
    if hasattr(config, "max_bucket_distance"):
        return f"a gated bias in {config.num_buckets} buckets, up to {config.max_bucket_distance} frames away"
    kind = getattr(config, "position_embeddings_type", None)
    if kind == "relative_key":
        reach = config.left_max_position_embeddings, config.right_max_position_embeddings
        return f"{kind}, up to {reach[0]} frames before and {reach[1]} after"
    return kind


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(keys) if keys else "none"
