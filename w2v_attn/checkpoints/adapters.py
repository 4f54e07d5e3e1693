"""Language adapters of MMS checkpoints: a small layer in every block and a CTC head, in one file per language.

A checkpoint whose config has `adapter_attn_dim` contains the adapters of one language among its weights. Files such as
`adapter.fra.safetensors` (or `.bin`) in the same folder contain the adapters of the other languages.

Source: V. Pratap et al., "Scaling Speech Technology to 1,000+ Languages", section 5. Parameter and file names are those
of transformers.
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

# In order of preference: safetensors files cannot contain code.
ADAPTER_FILES = ("adapter.{}.safetensors", "adapter.{}.bin")
EXAMPLE_ID = "facebook/mms-1b-all"
HEAD = "lm_head"
MAX_LISTED = 100  # languages named in a message; MMS has more than a thousand


def has_adapters(config: Any) -> bool:
    """Return whether every block of a model with this config has an adapter."""
    return getattr(config, "adapter_attn_dim", None) is not None


def find_adapter(source: str, folder: Path, config: Any, language: str) -> Path:
    """Return the file with the adapters of a language; download it if the checkpoint is a hub id.

    Args:
        source: The checkpoint as the user named it.
        folder: The folder in which `locate` found the checkpoint.
        config: The config of the model.
        language: Language code, as in the file name.

    Raises:
        CheckpointError: The checkpoint has no adapters, or none for this language. The message lists the languages.
    """
    if not has_adapters(config):
        raise CheckpointError(
            f"{source} has no adapters for languages (its config.json has no adapter_attn_dim), so “{language}” cannot "
            f"be selected: leave model.language out, or use an MMS checkpoint such as {EXAMPLE_ID}"
        )
    path = hub.find_file(source, folder, [name.format(language) for name in ADAPTER_FILES])
    if path is None:
        there = adapter_languages(hub.list_files(source, folder))
        raise CheckpointError(f"{source} has no adapter for the language “{language}”. {_offered(language, there)}")
    return path


def adapter_languages(names: Iterable[str]) -> list[str]:
    """Return the languages of all adapter files among these file names, sorted."""
    found = (re.fullmatch(r"adapter\.(.+)\.(safetensors|bin)", name) for name in names)
    return sorted({match[1] for match in found if match})


def load_adapter(model: Any, path: Path) -> None:
    """Load the adapters of a file into a model, in place; resize its CTC head to that of the file.

    Args:
        model: A Hugging Face model with adapters, with or without a head. Without one, the head in the file is ignored.
        path: The adapter file.

    Raises:
        CheckpointError: The file is damaged, contains more than tensors, or has other tensors than the model expects.
    """
    tensors, own = read_tensors(path), adapter_parameters(model)
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
    """Write the adapters and the head of a CTC model to a file that `load_adapter(language)` of transformers reads."""
    path = folder / ADAPTER_FILES[0].format(language)
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter_parameters(model).items()}
    save_file(tensors, path, {"format": "pt"})
    return path


def reset_adapters(model: Any) -> None:
    """Initialize the adapters of a model at random, as transformers initializes linear layers.

    Weights this small hardly change the hidden states, so training starts from the model without adapters.
    `init_adapter_layers` of transformers keeps the old weights.
    """
    for _, layer in _layers(model):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=model.config.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapters and of the CTC head, if there is one, keyed as in adapter files."""
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
    """Raise CheckpointError if a language code cannot be part of a file name."""
    if not re.fullmatch(r"[\w-]+", language):
        raise CheckpointError(f"a language code consists of letters, digits, _ and -, such as eng, got {language!r}")


def join_languages(names: list[str], max_items: int = MAX_LISTED) -> str:
    """Return languages separated by commas: the first `max_items`, then the number of the others."""
    return ", ".join(names[:max_items]) + (f" … and {len(names) - max_items:,} more" if len(names) > max_items else "")


def _layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield (module name, adapter) of every block that has an adapter."""
    for name, module in model.named_modules():
        if name.split(".")[-1] == "adapter_layer":
            yield name, module


def _offered(language: str, there: list[str]) -> str:
    if not there:
        return f"There is no adapter file next to its weights: expected files such as {ADAPTER_FILES[0].format('eng')}"
    close = difflib.get_close_matches(language, there, 3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}There are {len(there):,}: {join_languages(there)}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or `torch.save` file, in CPU memory. Raises CheckpointError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({first_line(error)}). Download the file again"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is a pickle that is damaged or contains more than tensors, which could run code "
            "when loaded. Nothing of it was run. Use a safetensors file of this adapter"
        ) from error
    except Exception as error:  # torch raises a different exception for each way in which a file is truncated
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            f"{path} contains no adapter: expected a dictionary of tensors, found {type(found).__name__}"
        )
    return found


def _check(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, nn.Parameter], head: nn.Linear | None) -> None:
    """Raise CheckpointError unless the file has exactly the tensors of the model; its head may have any size."""
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
        f"unexpected: {name}"
        for name in tensors
        if name not in wanted and not (head is None and name.startswith(f"{HEAD}."))
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit this checkpoint:\n  {list_lines(wrong)}\nIs it an adapter of another checkpoint?"
        )
