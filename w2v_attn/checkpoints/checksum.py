"""The checksum of a checkpoint: a hash of its weights and of the config values that change its features."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from w2v_attn.checkpoints.huggingface_folder import OPTIONAL
from w2v_attn.checkpoints.loading import Checkpoint

# Config values that say where a checkpoint came from; none of them changes a feature.
_IGNORED = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id")


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the loaded weights, the config and the input normalization.

    It hashes the digests of all tensors, which are computed in parallel. It depends on the tensors, not on the files:
    the same weights as safetensors, as a pickle or in fairseq's format have the same checksum. Hashing takes one to
    three seconds of a core per gigabyte, so it is computed each time and no modification time is trusted.
    """
    state = {
        name: tensor
        for name, tensor in checkpoint.model.state_dict().items()
        if name.split(".")[-1] not in OPTIONAL  # random if the checkpoint has none
    }
    config = {key: value for key, value in checkpoint.model.config.to_diff_dict().items() if key not in _IGNORED}
    about = [checkpoint.sample_rate, checkpoint.do_normalize, checkpoint.normalize_epsilon, None]
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
