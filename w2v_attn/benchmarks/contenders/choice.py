"""Which peers there are: name on the command line -> how it is made. A new one is a line here."""

from collections.abc import Callable, Sequence

from w2v_attn.benchmarks.contenders.contender import Contender
from w2v_attn.benchmarks.contenders.ctranslate2 import CTranslate2
from w2v_attn.benchmarks.contenders.hugging_face import Compiled, OneByOne, Padded
from w2v_attn.benchmarks.contenders.onnx_runtime import OnnxRuntime
from w2v_attn.benchmarks.contenders.openvino import OpenVino
from w2v_attn.benchmarks.contenders.torchaudio import Torchaudio

PEERS: dict[str, Callable[[], Contender]] = {
    "one_by_one": OneByOne,
    "random_batches": lambda: Padded(by_length=False),
    "sorted_batches": lambda: Padded(by_length=True),
    "compiled": Compiled,
    "torchaudio": Torchaudio,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "openvino_streams": lambda: OpenVino(in_streams=True),
    "ctranslate2": CTranslate2,
}


def choose(peers: Sequence[str]) -> list[Contender]:
    """The peers of these names, or all; Hugging Face one by one is always among them: all are compared with it.

    Raises:
        ValueError: an unknown name.
    """
    for name in peers:
        if name not in (*PEERS, "all"):
            raise ValueError(f"peers must be all or some of {', '.join(PEERS)}, got {name}")
    return [make() for name, make in PEERS.items() if name in peers or "all" in peers or name == "one_by_one"]
