"""torchaudio, and so transformers, imports beside a CPU build of torch once w2v_attn is imported."""

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

BESIDE_CPU_TORCH = torch.version.cuda is None and sys.platform == "linux"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_torchaudio_and_transformers_import_after_w2v_attn():
    done = run("import w2v_attn, torchaudio, transformers; from transformers import Wav2Vec2Model")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_its_pure_python_parts_work():
    code = """
import w2v_attn, torch, torchaudio
x = torchaudio.functional.resample(torch.randn(1, 8000), 8000, 16000)
assert x.shape == (1, 16000)
assert torchaudio.functional.lfilter(x, torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.2])).shape == x.shape
assert torchaudio.transforms.MelSpectrogram()(x).shape[1] == 128
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not BESIDE_CPU_TORCH, reason="the native library loads here")
def test_what_needs_the_native_library_says_so():
    code = """
import w2v_attn, torch, torchaudio
i = torch.tensor([[1]], dtype=torch.int32)
torchaudio.functional.rnnt_loss(torch.randn(1, 2, 2, 3), i, torch.tensor([2], dtype=torch.int32), i[0])
"""
    done = run(code)
    assert "its library could not be loaded" in done.stderr
    assert "pure Python parts work" in done.stderr


def test_importing_w2v_attn_imports_neither():
    done = run("import sys, w2v_attn; sys.exit('torchaudio' in sys.modules or 'torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
