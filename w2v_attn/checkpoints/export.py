"""A copy of a loaded checkpoint, that stock transformers loads or torchaudio."""

import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from w2v_attn.checkpoints.adapters import adapter_languages, has_adapters
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert.torchaudio_checkpoint import write_torchaudio
from w2v_attn.checkpoints.loading import Checkpoint, quiet_transformers
from w2v_attn.checkpoints.processor_files import copy_processor_files
from w2v_attn.checkpoints.tokenizers import read_tokenizer, target_language, vocabulary_languages

FORMATS = ("huggingface", "torchaudio")


def check_export_folder(folder: Path) -> None:
    """Raises CheckpointError where a copy would meet files that are there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: name another output")


def check_export_format(format: str) -> None:
    """Raises CheckpointError where there is no such format of a copy."""
    if format not in FORMATS:
        raise CheckpointError(f"format must be {' or '.join(FORMATS)}, got {format}")


def export_checkpoint(checkpoint: Checkpoint, folder: Path, *, format: str = "huggingface") -> None:
    """Writes config, weights and companions; the folder is there whole or not at all.

    format: "huggingface", with weights in safetensors, or "torchaudio", see `forms/torchaudio.py`.

    Raises:
        CheckpointError: there are files in the folder already, it cannot be written, or the format has no place for
            the model.
    """
    check_export_format(format)
    check_export_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            if format == "torchaudio":
                write_torchaudio(checkpoint.model, temporary)
            else:
                with quiet_transformers():  # a bar for a moment's work
                    checkpoint.model.save_pretrained(temporary)
            copy_processor_files(checkpoint.folder, temporary)
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
        if adapter_languages([path.name]):
            shutil.copyfile(path, folder / path.name)
    if checkpoint.language != target_language(checkpoint.folder) and vocabulary_languages(checkpoint.folder):
        read_tokenizer(checkpoint.folder, checkpoint.language).save_pretrained(folder)
