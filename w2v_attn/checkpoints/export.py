"""Export of a loaded checkpoint to the format of Hugging Face transformers or of torchaudio."""

import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from w2v_attn.checkpoints.adapters import adapter_languages, has_adapters
from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert.torchaudio_checkpoint import write_torchaudio
from w2v_attn.checkpoints.huggingface_folder import quiet_transformers
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.checkpoints.processor_files import copy_processor_files
from w2v_attn.checkpoints.processor_lm import copy_processor_lm
from w2v_attn.checkpoints.tokenizers import read_tokenizer, target_language, vocabulary_languages

# "wav2vec2" is the format of a folder whose model was loaded with `load_checkpoint(…, as_wav2vec2=True)`.
FORMATS = ("huggingface", "torchaudio", "wav2vec2")


def check_export_folder(folder: Path) -> None:
    """Raise CheckpointError unless the folder of an export is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: name another output")


def check_export_format(format: str) -> None:
    """Raise CheckpointError if a checkpoint cannot be exported to this format."""
    if format not in FORMATS:
        raise CheckpointError(f"format must be one of {', '.join(FORMATS)}, got {format}")


def export_checkpoint(checkpoint: Checkpoint, folder: Path, *, format: str = "huggingface") -> None:
    """Write config, weights, preprocessor, tokenizer and language model; the folder appears complete or not at all.

    Args:
        checkpoint: A loaded checkpoint.
        folder: The folder to create; it must be absent or empty.
        format: "huggingface", with weights in safetensors; "wav2vec2", the same for a model that was loaded as Wav2Vec2
            classes; or "torchaudio", see `convert/torchaudio_checkpoint.py`.

    Raises:
        CheckpointError: The folder contains files, it cannot be written, or the format cannot represent the model.
    """
    check_export_format(format)
    if format == "wav2vec2" and checkpoint.model.config.model_type != "wav2vec2":
        raise CheckpointError(f"{checkpoint.source} was not loaded as Wav2Vec2 classes: as_wav2vec2=True loads it so")
    check_export_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            if format == "torchaudio":
                write_torchaudio(checkpoint.model, temporary)
            else:
                with quiet_transformers():  # hides a progress bar that would show for a moment
                    checkpoint.model.save_pretrained(temporary)
            copy_processor_files(checkpoint.folder, temporary)
            copy_processor_lm(checkpoint.source, checkpoint.folder, temporary)
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
    """Copy the adapter files, and set the tokenizer to the language of the weights."""
    for path in checkpoint.folder.iterdir():
        if adapter_languages([path.name]):
            shutil.copyfile(path, folder / path.name)
    if checkpoint.language != target_language(checkpoint.folder) and vocabulary_languages(checkpoint.folder):
        read_tokenizer(checkpoint.folder, checkpoint.language).save_pretrained(folder)
