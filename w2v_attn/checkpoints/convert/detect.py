"""Detection of a checkpoint's format."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.convert import fairseq2_checkpoint as fairseq2
from w2v_attn.checkpoints.convert import fairseq_checkpoint as fairseq
from w2v_attn.checkpoints.convert import pickles
from w2v_attn.checkpoints.convert import torchaudio_checkpoint as torchaudio
from w2v_attn.checkpoints.convert.raw_checkpoint import RawCheckpoint
from w2v_attn.checkpoints.convert.sentencepiece_model import is_sentencepiece
from w2v_attn.checkpoints.unusable_files import check_file, single_file


def read_raw_checkpoint(
    checkpoint: str | os.PathLike[str] | nn.Module, *, as_wav2vec2: bool = False
) -> RawCheckpoint | None:
    """Read a fairseq, fairseq2 or torchaudio file, a folder in torchaudio's format, or a live torchaudio module.

    Args:
        checkpoint: Its path, or a live module.
        as_wav2vec2: Convert a checkpoint of Omnilingual ASR to Wav2Vec2 classes instead of OmniASR classes.

    Returns:
        The checkpoint's config, weights and vocabulary; None for anything else, which is left to `load_checkpoint`.

    Raises:
        CheckpointError: The file or module is of another kind or damaged, or cannot be converted.
    """
    if isinstance(checkpoint, nn.Module):
        if not torchaudio.is_torchaudio_module(checkpoint):
            raise CheckpointError(
                f"a {type(checkpoint).__name__} was given. Expected a hub id, a path, or a module of torchaudio.models"
            )
        return torchaudio.read_torchaudio_module(checkpoint)
    path = Path(os.path.expanduser(os.fspath(checkpoint)))
    if os.path.isdir(path) and torchaudio.is_torchaudio_folder(path):
        path = path / torchaudio.WEIGHTS
    elif os.path.isdir(path) and (file := single_file(path) or fairseq2.training_file(path)) is not None:
        path = file
    elif not os.path.isfile(path):
        return None
    check_file(path)
    found = _contents(path)
    if fairseq.is_fairseq_checkpoint(found):
        return fairseq.read_fairseq(path, found)
    if fairseq2.is_fairseq2_checkpoint(found):
        return fairseq2.read_fairseq2(path, found, as_wav2vec2=as_wav2vec2)
    if torchaudio.is_torchaudio_state(found):
        return torchaudio.read_torchaudio(path, found)
    raise CheckpointError(
        f"{path} contains no fairseq or fairseq2 checkpoint and no torchaudio state dict (it has {_summary(found)}). "
        "For a Hugging Face checkpoint, name the folder with config.json and weights"
    )


def _contents(path: Path) -> Any:
    """Return the contents of a safetensors or `torch.save` file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start[8:9] == b"{":
            return load_file(path)
        if pickles.is_pickle(start):
            return pickles.read_pickle(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({first_line(error)}). Download the file again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if is_sentencepiece(start):
        raise CheckpointError(
            f"{path} is a SentencePiece model, the tokenizer of a checkpoint: name the file of the checkpoint (.pt); "
            "its tokenizer is found next to it"
        )
    raise CheckpointError(
        f"{path} is a file, but no checkpoint: expected a safetensors or torch.save file. Or name a folder with "
        "config.json and weights, or a hub id"
    )


def _summary(found: Any) -> str:
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    names = [str(name) for name in found]
    what = "tensors" if all(isinstance(value, Tensor) for value in found.values()) else "entries"
    return f"{what} such as {', '.join(names[:4])}" if names else "nothing"
