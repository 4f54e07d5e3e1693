"""What a checkpoint is, whatever its name: a hash of its weights and of what its config makes of them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from w2v_attn.checkpoints.loading import OPTIONAL, Checkpoint

# Where it came from and who wrote it; none of them changes a feature.
_NO_MATTER = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """SHA-256, 64 hexadecimal digits, of the weights as loaded, the config and how the input is normalised.

    Of the digests of all tensors, which are found side by side.

    Of the tensors, not of the files: the same weights as safetensors, as a pickle or in fairseq's format are the same.
    One to three seconds of a core for each gigabyte, so it is found anew each time, and no file's date is trusted.
    """
    state = {
        name: tensor
        for name, tensor in checkpoint.model.state_dict().items()
        if name.split(".")[-1] not in OPTIONAL  # drawn anew where the checkpoint has none
    }
    config = {key: value for key, value in checkpoint.model.config.to_diff_dict().items() if key not in _NO_MATTER}
    about = [checkpoint.sample_rate, checkpoint.do_normalize, None]
    if checkpoint.filter_banks is not None:
        banks = checkpoint.filter_banks
        about[-1] = [banks.num_mel_bins, banks.stride, banks.sampling_rate]
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in sorted(state.items())]
    digest = hashlib.sha256(json.dumps([config, about, shapes], sort_keys=True, default=str).encode())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for found in pool.map(_digest, (tensor for _, tensor in sorted(state.items()))):
            digest.update(found)
    return digest.hexdigest()


def _digest(tensor: Tensor) -> bytes:
    values = tensor.detach().to("cpu").contiguous().reshape(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy().data).digest()
