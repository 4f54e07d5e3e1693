"""Typed values of a composed configuration; the error for a wrong value names its key."""

import math
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from w2v_attn.audio.audio_decoder import AudioDecoderOptions
from w2v_attn.cli.former_keys import FORMER_KEYS
from w2v_attn.cli.wrong_keys import closest_of
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.transcription.beam_search import BeamSearchOptions

Section = TypeVar("Section")


def select(config: Any, key: str) -> Any:
    """Return the value of a key, such as `output` or `audio_decoder.timeout`."""
    return OmegaConf.select(config, key, throw_on_missing=True)


def text(config: Any, key: str) -> str:
    """Return a string that must not be empty."""
    value = select(config, key)
    if value is None or not str(value):
        raise ValueError(f"{key} is empty: give {key}=VALUE")
    if OmegaConf.is_config(value):
        raise ValueError(f"{key} must be one value, got {plain(value)}. A name in brackets is quoted: '{key}=\"[x]\"'")
    return str(value)


def sources(config: Any, key: str) -> str | list[str]:
    """Return what names recordings: a file, a folder, a list of recordings …, or several of them."""
    value = select(config, key)
    return [str(source) for source in value] if OmegaConf.is_list(value) and value else text(config, key)


def text_or_none(config: Any, key: str) -> str | None:
    """Return a string, or None where the key is null."""
    return None if select(config, key) is None else str(select(config, key))


def path(config: Any, key: str) -> Path:
    """Return the path of a file or folder, which need not exist; ~ is the user's home."""
    return Path(os.path.expanduser(text(config, key)))


def path_or_none(config: Any, key: str) -> Path | None:
    """Return a path, or None where the key is null."""
    return None if select(config, key) is None else path(config, key)


def folder(config: Any, key: str) -> Path:
    """Return the path of a folder that exists or can be created."""
    found = path(config, key)
    if found.exists() and not found.is_dir():
        raise ValueError(f"{key}={found} is a file: name a folder")
    return found


def number(config: Any, key: str, *, minimum: float | None = None) -> float:
    """Return a number of at least `minimum`; without that, above 0."""
    try:
        value = float(select(config, key))
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number, got {select(config, key)}") from None
    if minimum is not None:
        if not value >= minimum:
            raise ValueError(f"{key} must be {minimum:g} or above, got {select(config, key)}")
    elif not value > 0:
        raise ValueError(f"{key} must be above 0, got {select(config, key)}")
    return value


def integer_or_none(config: Any, key: str) -> int | None:
    """Return a whole number, or None where the key is null."""
    try:
        return None if select(config, key) is None else int(str(select(config, key)))
    except ValueError:
        raise ValueError(f"{key} must be a whole number, got {select(config, key)}") from None


def list_of(config: Any, key: str, kind: Callable[[Any], Any] = str) -> list[Any]:
    """Return a list; a single value becomes a list of one element."""
    value = select(config, key)
    if value == "":
        raise ValueError(f"{key} is empty: give a list such as {key}=[a,b]")
    if isinstance(value, str | int | float):
        value = [value]
    try:
        return [kind(element) for element in value]
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a list such as {key}=[a,b], got {value}") from None


def columns(config: Any) -> dict[str, Any] | None:
    """Return `columns`, which says which column of a list is what; None where the key is null."""
    value = select(config, "columns")
    if value is None:
        return None
    if not isinstance(chosen := OmegaConf.to_container(value) if OmegaConf.is_dict(value) else value, dict):
        raise ValueError(f"columns must be a dict such as columns={{path: file, text: words}}, got {value}")
    return {str(field): name for field, name in chosen.items()}


def plain(config: Any) -> Any:
    """Return a configuration as dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=True)


def section(config: Any, key: str, kind: type[Section]) -> Section:
    """Return a section of the configuration as a dataclass; a single value becomes a list where the field is one.

    Raises:
        ValueError: a value has the wrong type, or there is no such key; the text names the key.
    """
    given = _with_lists(plain(config[key]), kind)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), given))  # type: ignore[return-value]
    except ConfigKeyError as error:  # inside of a list, such as optimizer.factors
        kinds = error.object_type
        wrong, known = str(error.key), [field.name for field in fields(kinds)] if is_dataclass(kinds) else []
        inside = next((name for name, value in given.items() if isinstance(value, list) and _has_key(value, wrong)), "")
        near = closest_of(FORMER_KEYS.get(f"{key}.{wrong}", wrong).rpartition(".")[2], known)
        hint = f"Did you mean {near}? " if near else ""
        raise ValueError(f"there is no key {key}.{inside}[].{wrong}. {hint}Its keys are {', '.join(known)}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error


def _has_key(elements: list[Any], key: str) -> bool:
    return any(isinstance(element, dict) and key in element for element in elements)


def _with_lists(node: Any, kind: Any) -> Any:
    """Return plain values in which those of a dataclass's lists are lists."""
    if not is_dataclass(kind) or not isinstance(node, dict):
        return node
    kinds = get_type_hints(kind)
    made = {}
    for name, value in node.items():
        choices = (kinds.get(name), *get_args(kinds.get(name)))  # of `list[str] | None` too
        is_single = any(get_origin(choice) is list for choice in choices) and isinstance(value, str | int | float)
        made[name] = [value] if is_single else _with_lists(value, kinds.get(name))
    return made


def model_options(config: Any) -> dict[str, Any]:
    """Return the arguments of `load_encoder` and `load_recognizer` beside the checkpoint."""
    return {
        "revision": config.model.revision,
        "language": language(config.model),
        "base_model": text_or_none(config, "model.base_model"),
        "dtype": str(config.dtype),
        "device": str(config.device),
        "backend": config.attention.backend,
    }


def recognizer_options(config: Any) -> dict[str, Any]:
    """Return the arguments of `load_recognizer` beside the checkpoint."""
    return {
        **model_options(config),
        "decoder": decoder(config),
        "long_form": long_form(config),
        "problem_type": text(config, "problem_type"),
        "threshold": number(config, "threshold", minimum=0),
    }


def language(model: Any) -> str | None:
    """Return `model.language` as text: Hydra reads nan, which is Min Nan Chinese, as a number."""
    return None if model["language"] is None else str(model["language"])


def long_form(config: Any) -> LongForm:
    """Return how long recordings are processed."""
    chosen = config.long_form
    seconds, overlap = (number(config, f"long_form.{name}", minimum=0) for name in ("seconds", "overlap"))
    return LongForm(kind=str(chosen.kind), seconds=seconds, overlap=overlap)


def audio_decoder(config: Any) -> AudioDecoderOptions:
    """Return where recordings are decoded, within which limits, and which channel is read."""
    chosen = config.audio_decoder
    subprocess = {name: number(config, f"audio_decoder.{name}") for name in ("timeout", "memory_gb") if name in chosen}
    rates = list_of(config, "audio_decoder.sample_rates", int)
    channels = int(number(config, "audio_decoder.max_channels"))
    return AudioDecoderOptions(
        kind=str(chosen.kind),
        sample_rates=tuple(rates),
        max_channels=channels,
        channel=text(config, "channel"),
        **subprocess,
    )


def limits(config: Any) -> dict[str, Any]:
    """Return the arguments of a run that concern recordings: the longest duration and the audio decoder."""
    return {"max_duration": number(config, "max_duration"), "audio_decoder": audio_decoder(config)}


def decoder(config: Any) -> BeamSearchOptions | None:
    """Return how logits become text: a beam search with a language model, or None for the greedy decoder."""
    if config.decoder.kind == "greedy":
        if config.decoder.lm is not None:
            raise ValueError(f"decoder.lm={config.decoder.lm} is of beam search: add decoder=beam_search")
        return None
    return BeamSearchOptions(
        lm=path_or_none(config, "decoder.lm"),
        lexicon=path_or_none(config, "decoder.lexicon"),
        beam_size=int(number(config, "decoder.beam_size", minimum=1)),
        lm_weight=_number_or_none(config, "decoder.lm_weight"),
        word_score=_number_or_none(config, "decoder.word_score"),
    )


def _number_or_none(config: Any, key: str) -> float | None:
    return None if select(config, key) is None else number(config, key, minimum=-math.inf)


def layer_weights(config: Any) -> str | tuple[float, ...] | None:
    """Return `layer_weights`: numbers, "mean", or the folder of a fine-tuned checkpoint."""
    value = config.layer_weights
    return value if value is None or isinstance(value, str) else tuple(list_of(config, "layer_weights", float))
