"""Which peers there are: name on the command line -> how it is made. A new one is a line here."""

from collections.abc import Callable, Sequence

import torch

from w2v_attn.benchmarks.peers.ctranslate2 import CTranslate2
from w2v_attn.benchmarks.peers.hugging_face import Compiled, OneByOne, Padded
from w2v_attn.benchmarks.peers.onnx_runtime import OnnxRuntime
from w2v_attn.benchmarks.peers.openvino import OpenVino
from w2v_attn.benchmarks.peers.peer import Contender
from w2v_attn.benchmarks.peers.torchaudio import Torchaudio

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
# Batches that a CPU only loses by: there they are not among all.
FOR_ACCELERATORS = ("sorted_batches_16", "sorted_batches_64", "sorted_batches_128")


def choose(peers: Sequence[str], device: torch.device) -> list[Contender]:
    """The peers of these names, or all; Hugging Face one by one is always among them: all are compared with it.

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
