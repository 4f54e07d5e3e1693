"""A checkpoint's name -> the local folder that holds its files."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

EXAMPLE_ID = "facebook/wav2vec2-base"

# In the order of preference: safetensors cannot hold code.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def locate(checkpoint: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder of a checkpoint: the one that is named, or the cached copy of a hub id, fetched if need be.

    Raises:
        CheckpointError: there is no such folder, it holds no checkpoint, or the hub id cannot be had.
    """
    source = os.fspath(checkpoint)
    folder = Path(os.path.expanduser(source))
    if os.path.isdir(folder):
        _check_folder(folder)
        return folder
    parts = source.split("/")
    if not source or len(parts) > 2 or source[0] in "./~\\" or any(part in ("", ".", "..") for part in parts):
        raise CheckpointError(
            f"there is no folder {source}. Give a folder that exists, or a hub id such as {EXAMPLE_ID}"
        )
    return _fetch(source, revision)


def list_files(source: str, folder: Path) -> list[str]:
    """NameTable of the files of a checkpoint that `locate` found: in its folder, and on the hub where that answers."""
    here = [path.name for path in folder.iterdir()]
    if _is_local(source) or not _hub_answers():
        return here
    from huggingface_hub import HfApi

    try:
        return [*here, *HfApi().list_repo_files(source, revision=folder.name)]
    except Exception as error:  # of huggingface_hub, of its HTTP client
        raise CheckpointError(f"the files of {source} cannot be listed: {first_line(error)}") from error


def find_file(source: str, folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these files that a checkpoint has; of a hub id it is fetched, of the same commit. None: it has none.

    Raises:
        CheckpointError: it may be on the hub, and cannot be fetched.
    """
    here = next((folder / name for name in names if (folder / name).is_file()), None)
    if here is not None or _is_local(source):
        return here
    if not _hub_answers():
        raise CheckpointError(
            f"{names[0]} of {source} is not in the cache, and there is no connection to the hub: put it into a folder "
            "with the checkpoint's files and name that: model=local model.checkpoint=/path/to/folder"
        )
    there = list_files(source, folder)
    wanted = next((name for name in names if name in there), None)
    if wanted is None:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, wanted, revision=folder.name))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the file system
        raise CheckpointError(f"{wanted} of {source} could not be fetched: {first_line(error)}") from error


def _is_local(source: str) -> bool:
    return os.path.isdir(os.path.expanduser(source))


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{folder} is a folder without config.json (it holds: {found}). Expected a Hugging Face checkpoint: "
            f"config.json and one of {', '.join(WEIGHT_FILES)}. One of fairseq's or torchaudio's is named by its file"
        )
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")


def _fetch(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    reachable = _hub_answers()
    try:
        if not reachable:
            return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
        there = HfApi().list_repo_files(hub_id, revision=revision)
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_wanted(there)))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the file system
        why = first_line(error) if reachable else "there is no connection to it"
        raise CheckpointError(
            f"{hub_id} is neither a folder here nor in the cache, and it could not be fetched from the hub: {why}. "
            "Check the name, the access rights and the network; or put the checkpoint's files into a folder and name "
            "that: model=local model.checkpoint=/path/to/folder"
        ) from error


def _wanted(files: list[str]) -> list[str]:
    """Configs, vocabularies and one format of the weights; not the copies for other frameworks."""
    weights = next((name for name in WEIGHT_FILES if name in files), "")
    if not weights.endswith(".index.json"):
        return ["*.json", "*.txt", weights]
    extension = weights.removesuffix(".index.json").rsplit(".", 1)[1]
    return ["*.json", "*.txt", f"*-of-*.{extension}"]


def _hub_answers() -> bool:
    """Whether the hub can be reached, found out in seconds; its client would try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=5):
            return True
    except OSError:
        return False
