"""Where the parts of an encoder are in Hugging Face's models: their names differ between families."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderParts:
    """The modules of a Hugging Face model without a head.

    Attributes:
        feature_encoder: The module with the convolutions, as `conv_layers`; None: the model reads filter banks.
        projection_norm: The norm between convolutions and blocks; None: there is none.
        projection: The linear map after it; None: there is none.
        encoder: The module whose forward computes positions and blocks.
        positions: The positional embedding that is added before the blocks; None: the attention has the positions.
        positions_add: Whether the forward of `positions` returns the sum with its input, not the embedding alone.
        blocks: The transformer blocks.
        norm: The norm before or after all blocks; None: there is none.
        norm_first: Whether norms come before attention and feed-forward (`do_stable_layer_norm`), or after them.
    """

    feature_encoder: Any
    projection_norm: nn.LayerNorm | None
    projection: nn.Linear | None
    encoder: Any
    positions: Any
    positions_add: bool
    blocks: Any
    norm: Any
    norm_first: bool

    @property
    def convolutions(self) -> Sequence[Any]:
        """The layers of the feature encoder; empty if the model reads filter banks."""
        return getattr(self.feature_encoder, "conv_layers", ())


def is_encoder(model: Any) -> bool:
    """Return whether this is a Hugging Face model without a head."""
    return _is_omniasr(model) or hasattr(getattr(model, "encoder", None), "layers")


def _is_omniasr(model: Any) -> bool:
    """Return whether this is an `OmniASRAudioModel`, which has no module of its own around its blocks."""
    return hasattr(model, "subsampling") and hasattr(model, "encode_positions")


def encoder_parts(model: Any) -> EncoderParts:
    """Return the parts of a Hugging Face model without a head.

    Raises:
        ValueError: it is something else.
    """
    if not is_encoder(model):
        raise ValueError(
            f"expected a Hugging Face model without a head, got {type(model).__name__}: model.base_model is one"
        )
    if _is_omniasr(model):
        return EncoderParts(
            feature_encoder=model.subsampling,
            projection_norm=model.subsampling.layer_norm,
            projection=model.subsampling.projection,
            encoder=model,
            positions=model.encode_positions,
            positions_add=True,
            blocks=model.layers,
            norm=model.layer_norm,
            norm_first=True,
        )
    encoder, projection = model.encoder, getattr(model, "feature_projection", None)
    if projection is not None and hasattr(projection, "projection"):
        norm, linear = getattr(projection, "layer_norm", None), projection.projection
    else:  # SEW, whose linear map is missing where the sizes agree
        norm, linear = getattr(model, "layer_norm", None), projection
    return EncoderParts(
        feature_encoder=getattr(model, "feature_extractor", None),
        projection_norm=norm,
        projection=linear,
        encoder=encoder,
        positions=getattr(encoder, "pos_conv_embed", None),
        positions_add=False,
        blocks=encoder.layers,
        norm=getattr(encoder, "layer_norm", None),
        norm_first=norms_first(encoder),
    )


def norms_first(encoder: nn.Module) -> bool:
    """Return whether the blocks of an encoder normalise before attention and feed-forward, or after them."""
    return type(encoder).__name__.endswith("StableLayerNorm")


def base_encoder(model: Any) -> Any:
    """Return the model without a head that a Hugging Face model contains or is."""
    base = model.base_model
    return getattr(base, "audio_tower", base)


def huggingface_model(model: nn.Module) -> Any:
    """Return the Hugging Face model inside wrappers, such as those of several processes and of PEFT."""
    from transformers import PreTrainedModel

    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def count_frames(model: Any, samples: Tensor) -> Tensor:
    """Return the frames, int64 [B], of a Hugging Face model with or without a head for waveforms of these lengths."""
    name = "_get_subsampling_output_length" if _is_omniasr(base_encoder(model)) else "_get_feat_extract_output_lengths"
    return getattr(model, name)(samples)


def ctc_head_of(model: Any) -> nn.Linear | None:
    """Return the linear map to the symbols of a CTC model; None if it has none."""
    return getattr(model, "lm_head", getattr(model, "ctc_head", None))


def model_inputs(model: Any, values: Tensor, real: Tensor | None = None) -> dict[str, Tensor | None]:
    """Return the arguments of the forward of a Hugging Face model, with or without a head.

    Args:
        model: The model, possibly in wrappers.
        values: [B, samples], or [B, frames, bins] for models that read filter banks.
        real: [B, samples or frames], 1 for real ones; None: all are.
    """
    model = huggingface_model(model)
    if _is_omniasr(base_encoder(model)):
        return {"input_values": values[:, None], "padding_mask": real}
    return {model.main_input_name: values, "attention_mask": real}


def encoder_config(config: Any) -> Any:
    """Return the config with the sizes of the encoder, from the config of a model with or without a head."""
    return getattr(config, "audio_config", config)
