"""What a checkpoint of any format is made of, in Hugging Face's terms, and the model that comes of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line, list_lines

# What may follow the name of a module.
LEAVES = r"(?P<leaf>(?:\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?)"

NamePairs = Sequence[tuple[str, str]]


class NameTable:
    """A table of names.

    pairs: (their name, Hugging Face's), of a module or of a parameter; `{n}` stands for a number. Where several of
        theirs have one of Hugging Face's, `theirs` gives the first.
    """

    def __init__(self, pairs: NamePairs):
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in pairs]
        self._to_theirs = [(_pattern(ours), theirs) for theirs, ours in pairs]

    def ours(self, name: str) -> str | None:
        """Hugging Face's name for one of theirs; None: it has no place there."""
        return _translated(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Their name for one of Hugging Face's; None: they have no place for it."""
        return _translated(name, self._to_theirs)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{n\}", r"(?P<n>\d+)") + LEAVES)


def _translated(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, other in table:
        if found := pattern.fullmatch(name):
            return other.replace("{n}", found.groupdict().get("n") or "") + found["leaf"]
    return None


# The modules of every encoder here; all else is a head.
ENCODER = ("feature_extractor", "feature_projection", "encoder")


@dataclass(frozen=True)
class RawCheckpoint:
    """A checkpoint, read and not yet a model.

    source: what it was read from, as messages name it. format: what it is, in words.
    config: the values of Hugging Face's config, `model_type` and `architectures` among them.
    tensors: by Hugging Face's names, those of the encoder without the prefix of models with heads.
    names: the table that they were named by.
    prefix: what stands before the names of the encoder in the file.
    pretraining_only: names in the file for which Hugging Face has no place, and which an encoder does without.
    unknown: names in the file that belong to nothing that is known.
    sample_rate: Hz. do_normalize: whether the input is brought to mean 0 and variance 1.
    normalize_source: where that is known from, in words.
    symbols: of the CTC head, by their numbers, with Hugging Face's names of the special ones; None: not known.
    folder: where more of it may stand, such as a preprocessor config or a tokenizer; None: nowhere.
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

    def their_name(self, name: str) -> str:
        """One of Hugging Face's names as the file has it."""
        theirs = self.names.theirs(name)
        if theirs is None:
            return name
        return f"{self.prefix}{theirs}" if name.split(".")[0] in (*ENCODER, "masked_spec_embed") else theirs


def make_config(raw: RawCheckpoint) -> Any:
    """The config of Hugging Face's family. Raises CheckpointError: values that cannot be."""
    from transformers import AutoConfig

    values = dict(raw.config)
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # configs validate their fields with exceptions of many kinds
        raise CheckpointError(f"the config in {raw.source} is not valid: {first_line(error)}") from error


def make_model(
    raw: RawCheckpoint, model_class: Any, config: Any, dtype: torch.dtype
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """(the stock model with these weights, what it lacks, what it has no place for); both name only what is harmless.

    Raises:
        CheckpointError: weights are missing, mis-shaped or left over; all of them are named, as the file names them.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)
    except Exception as error:  # sizes that do not divide each other, …
        raise CheckpointError(f"the config in {raw.source} is not valid: {first_line(error)}") from error
    wanted: Mapping[str, Tensor] = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    has_head = hasattr(model, model.base_model_prefix)
    placed: dict[str, Tensor] = {}
    left, wrong = [], [f"left over: {name}" for name in raw.unknown]
    for name, tensor in raw.tensors.items():
        place = prefix + name if prefix + name in wanted else name
        if place in wanted:
            placed[place] = tensor
        elif name == "masked_spec_embed" or (name.split(".")[0] not in ENCODER and not has_head):
            left.append(raw.their_name(name))
        else:
            wrong.append(f"left over: {raw.their_name(name)}")
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
        raise CheckpointError(
            f"the weights of {raw.source} are not those that its config describes:\n  {list_lines(wrong)}"
        )
    for place in missing:  # only training uses it; drawn as stock does, but the same every time
        placed[place] = torch.rand(wanted[place].shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    model.load_state_dict({place: _copy(tensor, dtype) for place, tensor in placed.items()}, strict=True, assign=True)
    return model, tuple(missing), (*raw.pretraining_only, *left)


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy also where the dtype is right: a tensor that lies in a file must not follow it when it changes."""
    dtype = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
