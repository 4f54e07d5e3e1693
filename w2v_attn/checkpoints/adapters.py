"""The adapters of a language, as MMS has them: a small layer in every block and a head, in a file for each language.

A checkpoint whose config has `adapter_attn_dim` holds those of one language among its weights; beside them, files such
as `adapter.fra.safetensors` (or `.bin`) hold those of the others.

Source: V. Pratap et al., "Scaling Speech Technology to 1,000+ Languages", section 5; names and files are transformers'.
"""

import difflib
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from w2v_attn.checkpoints import hub
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line, list_lines

# In the order of preference: safetensors cannot hold code.
ADAPTER_FILES = ("adapter.{}.safetensors", "adapter.{}.bin")
EXAMPLE_ID = "facebook/mms-1b-all"
HEAD = "lm_head"
MAX_LISTED = 100  # languages in a message; MMS has over a thousand


def has_adapters(config: Any) -> bool:
    """Whether the blocks of a model with this config have an adapter each."""
    return getattr(config, "adapter_attn_dim", None) is not None


def find_adapter(source: str, folder: Path, config: Any, language: str) -> Path:
    """The file with the adapters of a language; of a hub id it is fetched.

    source, folder: the checkpoint as it was named, and where `locate` found it.

    Raises:
        CheckpointError: the checkpoint has no adapters, or none of this language; it says which ones there are.
    """
    if not has_adapters(config):
        raise CheckpointError(
            f"{source} has no adapters for languages (its config.json has no adapter_attn_dim), so it cannot be had in "
            f"“{language}”: leave model.language out, or name an MMS checkpoint such as {EXAMPLE_ID}"
        )
    path = hub.find_file(source, folder, [name.format(language) for name in ADAPTER_FILES])
    if path is None:
        there = adapter_languages(hub.list_files(source, folder))
        raise CheckpointError(f"{source} has no adapter for the language “{language}”. {_offered(language, there)}")
    return path


def adapter_languages(names: Iterable[str]) -> list[str]:
    """The languages that files of these names hold adapters of, sorted."""
    found = (re.fullmatch(r"adapter\.(.+)\.(safetensors|bin)", name) for name in names)
    return sorted({match[1] for match in found if match})


def load_adapter(model: Any, path: Path) -> None:
    """Puts the adapters of a file into a model, in place; a CTC head becomes as large as that of the file.

    model: a stock model with adapters, with a head or without. What the file has for a head that the model has not is
        left aside.

    Raises:
        CheckpointError: the file is damaged, holds more than tensors, or not the tensors that the model wants.
    """
    tensors, own = _read(path), adapter_parameters(model)
    head = getattr(model, HEAD, None)
    _check(path, tensors, own, head)
    if head is not None:
        symbols = len(tensors[f"{HEAD}.weight"])
        if symbols != head.out_features:
            new = nn.Linear(head.in_features, symbols).to(head.weight)
            setattr(model, HEAD, new)
            model.config.vocab_size = symbols
            own |= {f"{HEAD}.{name}": parameter for name, parameter in new.named_parameters()}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def save_adapter(model: Any, language: str, folder: Path) -> Path:
    """Writes the adapters and the head of a CTC model as a file that stock's `load_adapter(language)` takes."""
    path = folder / ADAPTER_FILES[0].format(language)
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter_parameters(model).items()}
    save_file(tensors, path, {"format": "pt"})
    return path


def reset_adapters(model: Any) -> None:
    """Draws the adapters in the blocks of a model anew, as transformers draws the linear maps of a new model.

    With weights that small they hardly change what passes, so training starts from the model without adapters. Stock's
    `init_adapter_layers` leaves them as they were.
    """
    for _, layer in _layers(model):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=model.config.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What belongs to a language, the CTC head too where there is one, by the names that adapter files have."""
    prefix = "" if hasattr(model, model.base_model_prefix) else f"{model.base_model_prefix}."
    found = {
        f"{prefix}{place}.{name}": parameter
        for place, layer in _layers(model)
        for name, parameter in layer.named_parameters()
    }
    head = getattr(model, HEAD, None)
    if head is not None:
        found |= {f"{HEAD}.{name}": parameter for name, parameter in head.named_parameters()}
    return found


def check_language(language: str) -> None:
    """Raises CheckpointError where a name of a language cannot be part of a file's name."""
    if not re.fullmatch(r"[\w-]+", language):
        raise CheckpointError(f"a language is named by letters, digits, _ and -, such as eng, got {language!r}")


def join_languages(names: list[str], most: int = MAX_LISTED) -> str:
    """Languages in a sentence."""
    return ", ".join(names[:most]) + (f" … and {len(names) - most:,} more" if len(names) > most else "")


def _layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """(name, adapter) of every block that has one."""
    for name, module in model.named_modules():
        if name.split(".")[-1] == "adapter_layer":
            yield name, module


def _offered(language: str, there: list[str]) -> str:
    if not there:
        return f"There is no adapter beside its weights: expected files such as {ADAPTER_FILES[0].format('eng')}"
    close = difflib.get_close_matches(language, there, 3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}There are {len(there):,}: {join_languages(there)}"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut short ({first_line(error)}). Fetch the file again") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is a pickle that is damaged or holds more than tensors, which could run code when "
            "loaded. Nothing of it was run. Ask for a safetensors file of this adapter"
        ) from error
    except Exception as error:  # torch's reader has one of its own for every way in which a file can be cut
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no adapter: expected tensors with names, found {type(found).__name__}")
    return found


def _check(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, nn.Parameter], head: nn.Linear | None) -> None:
    """Raises CheckpointError where a file has not exactly what a model wants; its head may be of any size."""
    wanted = {name: list(parameter.shape) for name, parameter in own.items()}
    if head is not None and f"{HEAD}.weight" in tensors:
        symbols = list(tensors[f"{HEAD}.weight"].shape)[:1]
        wanted |= {name: [*symbols, *wanted[name][1:]] for name in wanted if name.startswith(f"{HEAD}.")}
    wrong = [f"missing: {name}" for name in wanted if name not in tensors]
    wrong += [
        f"of shape {list(tensors[name].shape)} instead of {shape}: {name}"
        for name, shape in wanted.items()
        if name in tensors and list(tensors[name].shape) != shape
    ]
    wrong += [
        f"left over: {name}"
        for name in tensors
        if name not in wanted and not (head is None and name.startswith(f"{HEAD}."))
    ]
    if wrong:
        raise CheckpointError(
            f"{path} is not an adapter of this checkpoint:\n  {list_lines(wrong)}\nIs it from another one?"
        )
