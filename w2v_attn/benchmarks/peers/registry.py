"""The registry of peers: name on the command line -> constructor. A new peer is a line here."""

from collections.abc import Callable, Sequence

import torch

from w2v_attn.benchmarks.peers.contender import Contender
from w2v_attn.benchmarks.peers.converted_peers import CTranslate2, OnnxRuntime, OpenVino
from w2v_attn.benchmarks.peers.pytorch_peers import Compiled, OneByOne, Padded, Torchaudio

PEERS: dict[str, Callable[[], Contender]] = {
    "one_by_one": OneByOne,
    "random_batches": lambda: Padded(by_length=False),
    "sorted_batches": lambda: Padded(by_length=True),
    "sorted_batches_16": lambda: Padded(16, by_length=True),
    "sorted_batches_64": lambda: Padded(64, by_length=True),
    "sorted_batches_128": lambda: Padded(128, by_length=True),
    "compiled": Compiled,
    "torchaudio": Torchaudio,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "openvino_streams": lambda: OpenVino(in_streams=True),
    "ctranslate2": CTranslate2,
}
# Large batches are slower on a CPU: there `all` does not include them.
FOR_ACCELERATORS = ("sorted_batches_16", "sorted_batches_64", "sorted_batches_128")


def select_peers(peers: Sequence[str], device: torch.device) -> list[Contender]:
    """Return the peers of these names, or all; Hugging Face one by one, the reference, is always included.

    Raises:
        ValueError: an unknown name.
    """
    for name in peers:
        if name not in (*PEERS, "all"):
            raise ValueError(f"peers must be all or some of {', '.join(PEERS)}, got {name}")
    chosen = {"one_by_one", *peers}
    if "all" in peers:
        chosen.update(name for name in PEERS if device.type != "cpu" or name not in FOR_ACCELERATORS)
    return [make() for name, make in PEERS.items() if name in chosen]
