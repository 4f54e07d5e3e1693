"""A copy of a loaded checkpoint that stock transformers loads."""

import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from w2v_attn.pretrained.adapters import has_adapters, languages
from w2v_attn.pretrained.checkpoints import Checkpoint
from w2v_attn.pretrained.errors import CheckpointError, first_line
from w2v_attn.pretrained.tokenizers import read_tokenizer, target_language, vocabulary_languages

# What a checkpoint carries besides config and weights: its preprocessor, tokenizer and card.
COMPANIONS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "README.md",
)


def check_destination(folder: Path) -> None:
    """Raises CheckpointError where a copy would meet files that are there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: name another output")


def save_copy(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes config, weights (safetensors) and companions; the folder is there whole or not at all.

    Raises:
        CheckpointError: there are files in the folder already, or it cannot be written.
    """
    check_destination(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            checkpoint.model.save_pretrained(temporary)
            for name in COMPANIONS:
                if (checkpoint.folder / name).is_file():
                    shutil.copyfile(checkpoint.folder / name, temporary / name)
            if has_adapters(checkpoint.model.config):
                _save_languages(checkpoint, temporary)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {folder}: {first_line(error)}") from error


def _save_languages(checkpoint: Checkpoint, folder: Path) -> None:
    """Copies the adapters beside the weights; the tokenizer then speaks the language that the weights hold."""
    for path in checkpoint.folder.iterdir():
        if languages([path.name]):
            shutil.copyfile(path, folder / path.name)
    if checkpoint.language != target_language(checkpoint.folder) and vocabulary_languages(checkpoint.folder):
        read_tokenizer(checkpoint.folder, checkpoint.language).save_pretrained(folder)
