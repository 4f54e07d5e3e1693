"""pytest's conftest of the common tests: every model that is built gets our attention, as its last step."""

import os

from transformers.modeling_utils import PreTrainedModel

import w2v_attn  # noqa: F401 - makes torchaudio importable before transformers asks for it
from w2v_attn import replace_attention
from w2v_attn.patching.replace import stock_attention_class

ATTENTION = os.environ["W2V_ATTN_COMMON"]
swapped = 0
stock_post_init = PreTrainedModel.post_init


def post_init(self):
    global swapped
    stock_post_init(self)
    if ATTENTION != "stock" and any(stock_attention_class(module) is not None for module in self.modules()):
        replace_attention(self, unpad=ATTENTION == "unpad")
        swapped += 1


PreTrainedModel.post_init = post_init


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{swapped} models were given the attention “{ATTENTION}”")
