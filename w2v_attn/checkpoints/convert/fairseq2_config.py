"""Config values of wav2vec 2.0 models of fairseq2, from the shapes of their weights.

fairseq2's files contain weights alone. Two values have no shape: the number of attention heads and the strides of the
convolutions. They are those of the published architectures, or are read from `model.yaml`, which fairseq2's recipes
write into the folder of their checkpoints.

Source: fairseq2, models/wav2vec2/config.py and factory.py; omnilingual-asr, models/wav2vec2_ssl/config.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

FRONTEND = "encoder_frontend"
CONVOLUTIONS = f"{FRONTEND}.feature_extractor.layers"
POSITION = f"{FRONTEND}.pos_encoder.conv"
METADATA = "model.yaml"

# Channels -> attention heads: of large (300M), 1B, and of 3B and 7B. A head has 64, 80 or 128 channels.
HEADS = {1024: 16, 1280: 16, 2048: 16}
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


def audio_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config values that transformers' OmniASR and Wav2Vec2 encoders have in common.

    Args:
        path: The checkpoint's file, for messages and to find its model.yaml.
        tensors: Its weights.

    Raises:
        CheckpointError: A weight that shows a size is missing, the model is no pre-norm Transformer with layer norm in
            each convolution, or its heads or strides are unknown.
    """
    _check_architecture(path, tensors)
    shapes = _Shapes(path, tensors)
    options = _model_yaml(path)
    channels, _ = shapes.of(2, f"{FRONTEND}.model_dim_proj.weight")
    position = next((name for name in _position_names() if name in tensors), f"{POSITION}.weight_v")
    _, each, kernel = shapes.of(3, position)
    wide, _ = shapes.of(2, "encoder.layers.0.ffn.inner_proj.weight")
    count = _count(tensors, CONVOLUTIONS) or 1
    layers = [shapes.of(3, f"{CONVOLUTIONS}.{n}.conv.weight") for n in range(count)]
    kernels = [kernel for _, _, kernel in layers]
    return {
        "hidden_size": channels,
        "num_hidden_layers": _count(tensors, "encoder.layers"),
        "num_attention_heads": _heads(path, channels, options),
        "intermediate_size": wide,
        "conv_dim": [dim for dim, _, _ in layers],
        "conv_kernel": kernels,
        "conv_stride": _strides(path, kernels, options),
        "conv_bias": f"{CONVOLUTIONS}.0.conv.bias" in tensors,
        "num_conv_pos_embeddings": kernel,
        "num_conv_pos_embedding_groups": channels // max(each, 1),
    }


def contrast_config(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config values of the pre-training heads of `Wav2Vec2ForPreTraining`."""
    shapes = _Shapes(path, tensors)
    _, entries, each = shapes.of(3, "quantizer.entries")
    projected, quantized = shapes.of(2, "final_target_proj.weight")
    groups = max(quantized // max(each, 1), 1)
    return {
        "codevector_dim": quantized,
        "num_codevector_groups": groups,
        "num_codevectors_per_group": entries // groups,
        "proj_codevector_dim": projected,
    }


def outputs_of_head(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of outputs of a CTC head."""
    outputs, _ = _Shapes(path, tensors).of(2, "final_proj.weight")
    return outputs


def folders_beside(path: Path) -> list[Path]:
    """Return the folders of the files that belong to a checkpoint: its own.

    For the file of a training, `FOLDER/step_…/model/pp_00/tp_00/sdp_00.pt`, also those above it up to FOLDER.
    """
    in_training = path.parent.name.startswith("tp_") and path.parents[1].name.startswith("pp_")
    return list(path.parents)[:5] if in_training else [path.parent]


def _check_architecture(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for models of fairseq2 that are not built as those of Omnilingual ASR."""
    if any(".self_attn.sdpa." in name or ".ffn1." in name for name in tensors):
        what, instead = "a Conformer (w2v-BERT)", "facebook/w2v-bert-2.0"
    elif f"{CONVOLUTIONS}.0.group_norm.weight" in tensors or f"{FRONTEND}.layer_norm.weight" in tensors:
        what, instead = "a model with layer norm after each block", "facebook/wav2vec2-base or -large"
    else:
        return
    raise CheckpointError(
        f"{path} is {what} of fairseq2, which is not converted: expected layer norm before each block and in each "
        f"convolution, as in Omnilingual ASR. Use a checkpoint in Hugging Face format, such as {instead}"
    )


def _position_names() -> tuple[str, ...]:
    return f"{POSITION}.weight_v", f"{POSITION}.parametrizations.weight.original1", f"{POSITION}.weight"


class _Shapes:
    """Shapes of weights, with errors that name them."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self._path, self._tensors = path, tensors

    def of(self, dimensions: int, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise CheckpointError(f"the weights of {self._path} are incomplete:\n  missing: {name}")
        shape = tuple(self._tensors[name].shape)
        if len(shape) != dimensions:
            raise CheckpointError(
                f"the weights of {self._path} are not those of a wav2vec 2.0 model of fairseq2:\n"
                f"  of shape {list(shape)}, not of {dimensions} dimensions: {name}"
            )
        return shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbered modules follow a prefix, by the highest number, so that a gap shows as missing keys."""
    numbers = [name.removeprefix(f"{prefix}.").split(".")[0] for name in tensors if name.startswith(f"{prefix}.")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _heads(path: Path, channels: int, options: Mapping[str, Any]) -> int:
    given = options.get("num_encoder_attn_heads")
    if given is None:
        given = HEADS.get(channels)
    if given is None:
        raise CheckpointError(
            f"{path} has {channels} channels, and its weights do not show how many attention heads share them: it is "
            f"known for {', '.join(map(str, HEADS))} channels. For others copy the {METADATA} of its training next to "
            f"it, as {path.parent / METADATA}"
        )
    if not isinstance(given, int) or given < 1 or channels % given:
        raise CheckpointError(f"{path} has {channels} channels, which {given} attention heads cannot share equally")
    return given


def _strides(path: Path, kernels: list[int], options: Mapping[str, Any]) -> list[int]:
    given = options.get("feature_extractor_layer_descs")
    if given is None and tuple(kernels) == KERNELS:
        return list(STRIDES)
    try:
        layers = [(int(kernel), int(stride)) for _, kernel, stride in given]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        layers = []
    if [kernel for kernel, _ in layers] != kernels or any(stride < 1 for _, stride in layers):
        raise CheckpointError(
            f"{path} has convolutions with kernels {kernels}, and its weights do not show their strides: they are "
            f"known for {list(KERNELS)}. For others copy the {METADATA} of its training, which has them in "
            f"feature_extractor_layer_descs, next to it, as {path.parent / METADATA}"
        )
    return [stride for _, stride in layers]


def _model_yaml(path: Path) -> dict[str, Any]:
    """Return the encoder's options in the model.yaml of a training, empty if there is none."""
    import yaml

    file = next((folder / METADATA for folder in folders_beside(path) if (folder / METADATA).is_file()), None)
    if file is None:
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from error
    found = found.get("model_config") if isinstance(found, dict) else None
    for name in ("wav2vec2_asr_config", "encoder_config"):  # the first in models with a language model
        found = found.get(name, found) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
