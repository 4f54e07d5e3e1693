"""A checkpoint of another format in Hugging Face's terms, the table of its parameter names, and its model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line, list_lines
from w2v_attn.checkpoints.convert.sentencepiece_model import SentencePieceModel

# What may follow the name of a module in the name of a parameter.
LEAVES = r"(?P<leaf>(?:\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?)"

NamePairs = Sequence[tuple[str, str]]


class NameTable:
    """Names of parameters in another format and in Hugging Face's, translated in both directions.

    Args:
        pairs: (name in the other format, Hugging Face's name) of a module or parameter; `{n}` matches a number. If
            several names have the same Hugging Face name, `theirs` returns the first.
    """

    def __init__(self, pairs: NamePairs):
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in pairs]
        self._to_theirs = [(_pattern(ours), theirs) for theirs, ours in pairs]

    def ours(self, name: str) -> str | None:
        """Return Hugging Face's name of a parameter of the other format; None if there is none."""
        return _translated(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Return the other format's name of a Hugging Face parameter; None if there is none."""
        return _translated(name, self._to_theirs)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{n\}", r"(?P<n>\d+)") + LEAVES)


def _translated(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, other in table:
        if found := pattern.fullmatch(name):
            return other.replace("{n}", found.groupdict().get("n") or "") + found["leaf"]
    return None


# The modules of every encoder, of OmniASR's in the second line; all others are heads.
ENCODER = (
    *("feature_extractor", "feature_projection", "encoder"),
    *("subsampling", "encode_positions", "layers", "layer_norm"),
)


@dataclass(frozen=True)
class RawCheckpoint:
    """A checkpoint that is read and converted, before a model is built from it.

    Attributes:
        source: What it was read from, for messages.
        format: Its format, for people.
        config: Values of Hugging Face's config, including `model_type` and `architectures`.
        tensors: Weights by Hugging Face's names, those of the encoder without the prefix of models with heads.
        names: The table of names with which they were translated.
        prefix: The prefix of the encoder's names in the file.
        pretraining_only: Names in the file that Hugging Face lacks and that an encoder does not need.
        unknown: Names in the file that are unknown.
        sample_rate: Hz.
        do_normalize: Whether the input is normalized to mean 0 and variance 1.
        normalize_source: Where `do_normalize` is known from, for people.
        symbols: Symbols of the CTC head by index, with Hugging Face's names of the special ones; None: unknown.
        folder: A folder that may contain a preprocessor config or a tokenizer; None: there is none.
        normalize_epsilon: What is added to the variance when the input is normalized; None: what the feature extractor
            of the family adds.
        pieces: The SentencePiece model of the CTC head; None: there is none.
    """

    source: str
    format: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    names: NameTable
    prefix: str
    pretraining_only: tuple[str, ...]
    unknown: tuple[str, ...]
    sample_rate: int
    do_normalize: bool
    normalize_source: str
    symbols: tuple[str, ...] | None
    folder: Path | None
    normalize_epsilon: float | None = None
    pieces: SentencePieceModel | None = None

    def their_name(self, name: str) -> str:
        """Return the name in the file of a Hugging Face parameter, or the name itself if the file has none."""
        theirs = self.names.theirs(name)
        if theirs is None:
            return name
        return f"{self.prefix}{theirs}" if name.split(".")[0] in (*ENCODER, "masked_spec_embed") else theirs


def make_config(raw: RawCheckpoint, *, with_head: bool = True) -> Any:
    """Return the Hugging Face config of a checkpoint, or without the head that of its encoder, if they are two.

    Raises:
        CheckpointError: Its values are invalid.
    """
    from transformers import AutoConfig

    values = dict(raw.config if with_head else raw.config.get("audio_config", raw.config))
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise CheckpointError(f"the config in {raw.source} is not valid: {first_line(error)}") from error


def make_model(
    raw: RawCheckpoint, model_class: Any, config: Any, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """Build a Hugging Face model with the weights of a checkpoint.

    Returns:
        The model, the harmless missing keys and the harmless unexpected keys.

    Raises:
        CheckpointError: Weights are missing, mis-shaped or unexpected; the message lists all of them by their names in
            the file.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:  # sizes that do not divide each other, …
        raise CheckpointError(f"the config in {raw.source} is not valid: {first_line(error)}") from error
    wanted: Mapping[str, Tensor] = model.state_dict()
    base = getattr(model, model.base_model_prefix, None)
    has_head = base is not None
    prefix = f"{model.base_model_prefix}." + ("audio_tower." if hasattr(base, "audio_tower") else "")
    placed: dict[str, Tensor] = {}
    left, wrong = [], [f"unexpected: {name}" for name in raw.unknown]
    for name, tensor in raw.tensors.items():
        place = prefix + name if prefix + name in wanted else name
        if place in wanted:
            placed[place] = tensor
        elif name == "masked_spec_embed" or (name.split(".")[0] not in ENCODER and not has_head):
            left.append(raw.their_name(name))
        else:
            wrong.append(f"unexpected: {raw.their_name(name)}")
    optional = {place for place in wanted if place.endswith("masked_spec_embed")}
    missing = [place for place in wanted if place not in placed]
    wrong += [f"missing: {raw.their_name(place.removeprefix(prefix))}" for place in missing if place not in optional]
    wrong += [
        f"of shape {list(tensor.shape)} instead of {list(wanted[place].shape)}: "
        f"{raw.their_name(place.removeprefix(prefix))}"
        for place, tensor in placed.items()
        if tensor.shape != wanted[place].shape
    ]
    wrong += [
        f"of {tensor.dtype}: {raw.their_name(place.removeprefix(prefix))}"
        for place, tensor in placed.items()
        if tensor.is_floating_point() != wanted[place].is_floating_point()
    ]
    if wrong:
        raise CheckpointError(f"the weights of {raw.source} do not match its config:\n  {list_lines(wrong)}")
    for place in missing:  # used in training only; random as in transformers, but the same each time
        placed[place] = torch.rand(wanted[place].shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    model.load_state_dict({place: _copy(tensor, dtype) for place, tensor in placed.items()}, strict=True, assign=True)
    return model, tuple(missing), (*raw.pretraining_only, *left)


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy even if the dtype is right: a memory-mapped tensor would change with its file."""
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
