"""Local folders of checkpoints: paths, and hub ids in the cache or downloaded."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line
from w2v_attn.checkpoints.unusable_files import CONFIG, PEFT_CONFIG, PEFT_WEIGHT_FILES, WEIGHT_FILES, check_folder

EXAMPLE_ID = "facebook/wav2vec2-base"


def locate(checkpoint: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the folder of a checkpoint: the given one, or the cache folder of a hub id, downloaded if necessary.

    Raises:
        CheckpointError: The folder does not exist or contains no checkpoint, or the hub id cannot be downloaded.
    """
    source = os.fspath(checkpoint)
    folder = Path(os.path.expanduser(source))
    if os.path.isdir(folder):
        check_folder(folder)
        return folder
    parts = source.split("/")
    if not source or len(parts) > 2 or source[0] in "./~\\" or any(part in ("", ".", "..") for part in parts):
        raise CheckpointError(f"there is no folder {source}. Give an existing folder, or a hub id such as {EXAMPLE_ID}")
    return _fetch(source, revision)


def list_files(source: str, folder: Path) -> list[str]:
    """Return the file names of a checkpoint that `locate` found: in its folder and, if reachable, on the hub."""
    here = [path.name for path in folder.iterdir()]
    if _is_local(source) or not _hub_answers():
        return here
    from huggingface_hub import HfApi

    try:
        return [*here, *HfApi().list_repo_files(source, revision=folder.name)]
    except Exception as error:  # of huggingface_hub, of its HTTP client
        raise CheckpointError(f"the files of {source} cannot be listed: {first_line(error)}") from error


def find_file(source: str, folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of these files that a checkpoint has, or None; download it from a hub id's commit if necessary.

    Raises:
        CheckpointError: The file may be on the hub and cannot be downloaded.
    """
    here = next((folder / name for name in names if (folder / name).is_file()), None)
    if here is not None or _is_local(source):
        return here
    if not _hub_answers():
        raise CheckpointError(
            f"{names[0]} of {source} is not in the cache, and there is no connection to the hub: copy it into a folder "
            "with the checkpoint's files and use that folder: model=local model.checkpoint=/path/to/folder"
        )
    there = list_files(source, folder)
    wanted = next((name for name in names if name in there), None)
    if wanted is None:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, wanted, revision=folder.name))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the file system
        raise CheckpointError(f"{wanted} of {source} could not be downloaded: {first_line(error)}") from error


def _is_local(source: str) -> bool:
    return os.path.isdir(os.path.expanduser(source))


def _fetch(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    reachable = _hub_answers()
    try:
        if not reachable:
            found = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
        else:
            there = HfApi().list_repo_files(hub_id, revision=revision)
            found = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_wanted(there)))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the file system
        why = first_line(error) if reachable else "there is no connection to it"
        raise CheckpointError(
            f"{hub_id} is neither a local folder nor in the cache, and it could not be downloaded from the hub: {why}. "
            "Check the name, the access rights and the network; or copy the checkpoint's files into a folder and use "
            "that folder: model=local model.checkpoint=/path/to/folder"
        ) from error
    check_folder(found)
    return found


def _wanted(files: list[str]) -> list[str]:
    """Return the patterns of configs, vocabularies and one format of the weights, without other frameworks' copies.

    A repository without config.json may have one file of fairseq2 (.pt) and its SentencePiece tokenizer.
    """
    if not {CONFIG, PEFT_CONFIG} & set(files) and len([name for name in files if name.endswith(".pt")]) == 1:
        return ["*.pt", "*.model", "*.yaml"]
    found = [next((name for name in names if name in files), None) for names in (WEIGHT_FILES, PEFT_WEIGHT_FILES)]
    return ["*.json", "*.txt", *(_shards(name) for name in found if name is not None)]


def _shards(name: str) -> str:
    """Return the pattern of the files that an index of weights names; the name itself if it is no index."""
    stem = name.removesuffix(".index.json")
    return name if stem == name else f"*-of-*.{stem.rsplit('.', 1)[1]}"


def _hub_answers() -> bool:
    """Return within seconds whether the hub can be reached; its client would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy can tell
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=5):
            return True
    except OSError:
        return False
