"""Folders and files that are no checkpoint, or not a whole one: what they are, and what to give instead."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from w2v_attn.checkpoints.checkpoint_error import CheckpointError, first_line

CONFIG, PEFT_CONFIG = "config.json", "adapter_config.json"
# In order of preference: safetensors files cannot contain code.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PEFT_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

LFS_START = b"version https://git-lfs"
# Pattern of a file or folder name -> what it is, and what to do.
_FOREIGN = (
    (r"tf_model.*\.h5", "weights of TensorFlow ({}). Convert them with a transformers below version 5: from_tf=True"),
    (
        r"flax_model.*\.msgpack",
        "weights of Flax ({}). Convert them with a transformers below version 5: from_flax=True",
    ),
    (
        r"global_step\d+|zero_pp_rank_.*",
        "the shards of DeepSpeed's ZeRO ({}). Join them: python zero_to_fp32.py FOLDER FOLDER --safe_serialization",
    ),
    (
        r"pytorch_model_fsdp.*|.*\.distcp",
        "shards of torch's FSDP ({}). Join them: accelerate merge-weights FOLDER OUTPUT",
    ),
    (r".*\.gguf", "weights of llama.cpp or whisper.cpp ({}). Use the checkpoint that they were made from"),
    (r".*\.onnx", "an ONNX graph ({}). Use the checkpoint that it was exported from"),
    (
        r".*\.(incomplete|part|aria2|crdownload|tmp)",
        "a download that has not ended ({}). Download the checkpoint again",
    ),
    (r".*\.nemo", "a NeMo archive ({}), whose models are not of a supported family"),
    (r".*\.ckpt", "a checkpoint of another training library ({}). Save its model with save_pretrained"),
)
# First bytes of a file -> what it is, and what to do.
_FOREIGN_STARTS = (
    (b"GGUF", "is in GGUF format, of llama.cpp and whisper.cpp. Use the checkpoint that it was made from"),
    (b"\x89HDF", "is an HDF5 file, as TensorFlow's tf_model.h5 is. Use a safetensors file of this checkpoint"),
)


def check_folder(folder: Path) -> None:
    """Check that a folder holds a config and all of its weights, or a PEFT adapter.

    Raises:
        CheckpointError: It does not; the message says what it holds instead, and what to name.
    """
    names = sorted(path.name for path in folder.iterdir())
    if PEFT_CONFIG in names and not (CONFIG in names and has_any(names, WEIGHT_FILES)):
        if not has_any(names, PEFT_WEIGHT_FILES):
            raise CheckpointError(
                f"{folder} has the {PEFT_CONFIG} of a PEFT adapter, but no weights: expected "
                f"{' or '.join(PEFT_WEIGHT_FILES)}{_instead(folder, names)}"
            )
    elif CONFIG not in names:
        if single_file(folder) is not None:
            return
        found = ", ".join(names[:8]) or "nothing"
        raise CheckpointError(
            f"{folder} is a folder without config.json (it contains: {found}){_instead(folder, names)}. Expected a "
            f"Hugging Face checkpoint, config.json and one of {', '.join(WEIGHT_FILES)}, or a PEFT adapter, "
            f"{PEFT_CONFIG} and {PEFT_WEIGHT_FILES[0]}. For a fairseq or torchaudio checkpoint give its file"
        )
    elif not has_any(names, WEIGHT_FILES):
        raise CheckpointError(
            f"{folder} contains no weights: expected one of {', '.join(WEIGHT_FILES)}{_instead(folder, names)}"
        )
    for name in weight_files(folder, names):
        check_pointer(folder / name)


def single_file(folder: Path) -> Path | None:
    """Return the only `.pt` file of a folder without config.json, as in hub repositories of fairseq2; None: another."""
    files = [] if (folder / CONFIG).is_file() or (folder / PEFT_CONFIG).is_file() else list(folder.glob("*.pt"))
    return files[0] if len(files) == 1 else None


def has_any(names: Iterable[str], wanted: Sequence[str]) -> bool:
    """Return whether one of the wanted names is among these."""
    return any(name in wanted for name in names)


def weight_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the files of the weights that are read from a folder.

    Raises:
        CheckpointError: An index names files that are not there.
    """
    found = [name for name in PEFT_WEIGHT_FILES if name in names][:1]
    chosen = next((name for name in WEIGHT_FILES if name in names), None)
    if chosen is None:
        return found
    if not chosen.endswith(".index.json"):
        return [*found, chosen]
    check_pointer(folder / chosen)
    try:
        places = json.loads((folder / chosen).read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(place) for place in places})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / chosen} cannot be read as an index of weights ({first_line(error)}): download the file again"
        ) from error
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} files of its weights, which {chosen} names: {shown}. "
            "Download or copy them, too"
        )
    return [*found, chosen, *shards]


def check_pointer(path: Path) -> None:
    """Raise CheckpointError if a file is the pointer that git-lfs leaves in place of a large file, or empty."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_START))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error
    if start == LFS_START:
        raise CheckpointError(
            f"{path} is the pointer of git-lfs, not the weights: run `git lfs install` and `git lfs pull` in its folder"
        )
    if not start:
        raise CheckpointError(f"{path} is empty: download the file again")


def check_file(path: Path) -> None:
    """Raise CheckpointError if a file that was named as a checkpoint is known to be none."""
    check_pointer(path)
    with path.open("rb") as file:
        start = file.read(8)
    for bytes_, what in _FOREIGN_STARTS:
        if start.startswith(bytes_):
            raise CheckpointError(f"{path} {what}")
    if what := _foreign([path.name]):
        raise CheckpointError(f"{path} holds {what}")
    if path.suffix in (".yaml", ".yml"):
        _check_card(path)
    if path.name in PEFT_WEIGHT_FILES or path.name == PEFT_CONFIG:
        raise CheckpointError(f"{path} is one file of a PEFT adapter: name its folder, {path.parent}")
    if path.name == "training_args.bin":
        raise CheckpointError(f"{path} has the arguments of a Trainer, no weights: name its folder, {path.parent}")


def _check_card(path: Path) -> None:
    """Raise CheckpointError if a YAML file is a model card of fairseq2."""
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = file.read(100_000).splitlines()
    if any(line.startswith(("model_family:", "model_arch:", "checkpoint:")) for line in lines):
        named = [line.partition(":")[2].strip(" \"'") for line in lines if line.startswith("checkpoint:")]
        where = f": {', '.join(named[:4])}" if named else ""
        raise CheckpointError(
            f"{path} is a model card of fairseq2, without weights. Name the file of a checkpoint (.pt) that it points "
            f"to{where}"
        )


def _instead(folder: Path, names: Sequence[str]) -> str:
    """Return what a folder holds instead of a checkpoint, as the continuation of a sentence; empty if unknown."""
    inside = [name for name in names if _is_checkpoint(folder / name)]
    if inside:
        inside.sort(key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)])
        shown = ", ".join(inside[-8:])
        return f". It contains the checkpoints {shown}: name one of them, such as {folder / inside[-1]}"
    snapshots = sorted((folder / "snapshots").glob(f"*/{CONFIG}"))
    if snapshots:
        return f". It is a cache folder of the hub: name {snapshots[-1].parent}"
    if has_any(names, PEFT_WEIGHT_FILES) and PEFT_CONFIG not in names:
        return f". It has the weights of a PEFT adapter, but not their {PEFT_CONFIG}: copy that file, too"
    what = _foreign(names)
    return f". It has {what}" if what else ""


def _is_checkpoint(folder: Path) -> bool:
    return folder.is_dir() and ((folder / CONFIG).is_file() or (folder / PEFT_CONFIG).is_file())


def _foreign(names: Iterable[str]) -> str:
    for pattern, what in _FOREIGN:
        matching = [name for name in names if re.fullmatch(pattern, name)]
        if matching:
            return what.format(", ".join(matching[:3]))
    return ""
