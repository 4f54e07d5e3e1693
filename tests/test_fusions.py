"""Steps in one launch give what torch gives in several; in Triton's interpreter where there is no GPU."""

import pytest
import torch
from conftest import save, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from w2v_attn import load_encoder
from w2v_attn.attention.fourier import overlap_add
from w2v_attn.attention.triton_core import interpreted
from w2v_attn.encoder import frontend_together, fusions, waveforms

pytest.importorskip("triton")
DEVICE = "cpu" if interpreted() else "cuda"
# Of a result of size 1: roundings of the result, for sums are in float32.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(ours, exact, dtype):
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact.double(), rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.parametrize("dtype", fusions.HALF, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("frames", "kernel", "stride", "C", "N"), [(301, 3, 2, 40, 24), (40, 2, 2, 64, 264), (5, 1, 1, 8, 8)]
)
def test_a_product_with_windows_is_the_convolution(frames, kernel, stride, C, N, dtype, gelu):
    x, bias = noise(frames, C, dtype=dtype), noise(N, seed=1, dtype=dtype)
    weight = (noise(N, C, kernel, seed=2) / (C * kernel) ** 0.5).to(dtype)
    for b in (bias, None):
        ours = fusions.window_product(x, kernel, stride, weight.transpose(1, 2).flatten(1).contiguous(), b, gelu=gelu)
        exact = F.conv1d(x.double().T[None], weight.double(), None if b is None else b.double(), stride)[0].T
        assert_near(ours, F.gelu(exact) if gelu else exact, dtype)


@dtypes
@pytest.mark.parametrize("gelu", [False, True])
def test_first_frames_are_of_each_recordings_own_weights(dtype, gelu):
    kernel, stride, windows, blocks, C, count = 10, 5, 128, 3, 24, 301
    samples = noise((count - 1) * stride + kernel)
    weights = torch.zeros(2, fusions.FIRST_WIDTH, C, device=DEVICE)
    weights[:, : kernel + 1] = noise(2, kernel + 1, C, seed=1) / 3
    owners = torch.tensor([1, 0, 1], device=DEVICE)
    ours = fusions.first_frames(
        samples, weights, owners, count=count, kernel=kernel, stride=stride, windows=windows, dtype=dtype, gelu=gelu
    )
    own = weights[owners.repeat_interleave(windows)[:count]].double()
    exact = torch.einsum("tk,tkc->tc", samples.double().unfold(0, kernel, stride), own[:, :kernel]) + own[:, kernel]
    assert len(owners) == blocks
    assert_near(ours, F.gelu(exact) if gelu else exact, dtype)


@dtypes
@pytest.mark.parametrize("keeps", ["sum", "norm"])
@pytest.mark.parametrize("C", [24, 64, 77])
def test_a_sum_and_its_norm_are_torchs(C, keeps, dtype):
    norm = torch.nn.LayerNorm(C).to(DEVICE)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x, y = noise(7, C) + 3, noise(7, C, seed=1, dtype=dtype)
    kept, narrow = fusions.add_norm(y, x, norm, half=dtype, keeps=keeps)
    exact = F.layer_norm((x + y.float()).double(), (C,), norm.weight.double(), norm.bias.double(), norm.eps)
    assert_near(kept, (x + y.float()) if keeps == "sum" else exact, torch.float32)
    assert_near(narrow, exact, dtype)
    assert_near(fusions.norm_gelu(y, norm.to(dtype), dtype), F.gelu(norm.double()(y.double())), dtype)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 7), hop=st.integers(2, 6), less=st.integers(0, 3))
def test_windows_that_overlap_add_up_as_one_after_the_other(count, hop, less):
    N = max(2 * hop - less, hop)
    windows = torch.arange(count * N * 2, dtype=torch.float64).view(count, N, 2)
    exact = torch.zeros((count + 1) * hop, 2, dtype=torch.float64)
    for number, window in enumerate(windows):
        exact[number * hop : number * hop + N] += window
    assert torch.equal(overlap_add(windows, hop), exact)


SIZES = {"hidden_size": 32, "conv_dim": (16,) * 7, "conv_stride": (5, 2, 2, 2, 2, 2, 2), "num_hidden_layers": 2}


@pytest.mark.skipif(DEVICE == "cuda", reason="with a GPU the encoder takes these steps by itself: test_gpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer", "wavlm-group"])
def test_an_encoder_of_such_steps_is_the_encoder(family, dtype, speech, tmp_path, monkeypatch):
    folder = save(tiny_model(family, **SIZES), tmp_path / "model")
    waves = [wave[8000:][: 900 + 500 * number] for number, wave in enumerate(speech[:2])]
    exact = load_encoder(folder, dtype="float64").extract(waves, ("all",))
    plain = load_encoder(folder, dtype=dtype).extract(waves, ("all",))
    calls = []
    for name in ("window_product", "first_frames", "add_norm", "norm_gelu"):
        step = getattr(fusions, name)
        monkeypatch.setattr(fusions, name, lambda *a, step=step, name=name, **o: calls.append(name) or step(*a, **o))
    monkeypatch.setattr(fusions, "serves", lambda device: True)
    monkeypatch.setattr(fusions, "serves_products", lambda weight: weight.dtype in fusions.HALF)
    monkeypatch.setattr(frontend_together, "pays", lambda device: True)
    assert waveforms.frontend_together is frontend_together
    fused = load_encoder(folder, dtype=dtype).extract(waves, ("all",))
    wanted = {"first_frames", "add_norm"} | ({"window_product"} if dtype == "bfloat16" else set())
    assert wanted <= set(calls)
    for ours, theirs, right in zip(fused, plain, exact, strict=True):
        for name in right:
            errors = [((x[name].double() - right[name]).norm() / right[name].norm()).item() for x in (ours, theirs)]
            # Triton's interpreter cuts to bfloat16 where torch and GPUs round: at least twice the error.
            assert errors[0] < (3e-6 if dtype == "float32" else 3 * errors[1]), (name, errors)
