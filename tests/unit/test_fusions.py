"""Steps in one launch give what torch gives in several; in Triton's interpreter where there is no GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import save, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from w2v_attn import load_encoder
from w2v_attn.benchmarks.measurement import float32_is_float32
from w2v_attn.encoder import frontend_batched
from w2v_attn.ops import fusions
from w2v_attn.ops.fourier import FourierConvolution, gapped_positions, overlap_add
from w2v_attn.ops.triton_support import is_interpreted

pytest.importorskip("triton")
DEVICE = "cpu" if is_interpreted() else "cuda"
# Of a result of size 1: roundings of the result, for sums are in float32.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@pytest.fixture(autouse=True)
def torch_does_not_round_to_tf32():
    with float32_is_float32():
        yield


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_near(ours, exact, dtype):
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact.double(), rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.parametrize("dtype", fusions.HALF, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("frames", "kernel", "stride", "C", "N"),
    [(301, 3, 2, 40, 24), (40, 2, 2, 64, 264), (5, 1, 1, 8, 8), (2600, 2, 2, 16, 264)],
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
    kernel, stride, windows, C, count = 10, 5, 128, 24, 301
    samples = noise((count - 1) * stride + kernel)
    weights = torch.zeros(2, fusions.FIRST_WIDTH, C, device=DEVICE)
    weights[:, : kernel + 1] = noise(2, kernel + 1, C, seed=1) / 3
    owners = torch.tensor([1, 0, 1], device=DEVICE)
    ours = fusions.first_convolution(
        samples, weights, owners, count=count, kernel=kernel, stride=stride, windows=windows, dtype=dtype, gelu=gelu
    )
    own = weights[owners.repeat_interleave(windows)[:count]].double()
    exact = torch.einsum("tk,tkc->tc", samples.double().unfold(0, kernel, stride), own[:, :kernel]) + own[:, kernel]
    assert_near(ours, F.gelu(exact) if gelu else exact, dtype)


@dtypes
@pytest.mark.parametrize("keeps", ["sum", "norm"])
@pytest.mark.parametrize("C", [24, 64, 77])
def test_a_sum_and_its_norm_are_torchs(C, keeps, dtype):
    norm = torch.nn.LayerNorm(C).to(DEVICE)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
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


def test_recordings_with_a_gap_between_are_convolved_as_one_recording_would_be():
    lengths, C = [3, 1, 40, 0, 7], 6
    frames = noise(sum(lengths), C).double()
    convolution = torch.nn.Conv1d(C, C, 8, padding=4, groups=2).double().to(DEVICE)
    separate = FourierConvolution(convolution, F.gelu, None, torch.float64, trainable=False)
    places = gapped_positions(lengths, 4, frames.device)
    total = int(places[-1]) + 1
    batched = frames.new_zeros(total, C).index_copy(0, places, frames)
    exact = torch.cat([separate(part, [len(part)]) for part in frames.split(lengths) if len(part)])
    torch.testing.assert_close(separate(batched, [total])[places], exact, rtol=0, atol=1e-12)


COMPILE = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from w2v_attn.ops import fusion_kernels, fusions

def shared(kernel, capability, warps, stages, constants, **signature):
    names = kernel.arg_names
    signature = {**{name: "i32" for name in names}, **signature, **{name: "constexpr" for name in constants}}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    options = {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared

found = {}
for capability in (89, 90):
    floats = {"eps": "fp32", **{name: "*fp32" for name in ("x", "y", "weight", "bias", "total", "wide")}}
    found[f"norm {capability}"] = shared(
        fusion_kernels.layer_norm_kernel, capability, 2, 3, {"PADDED": 1024, "GELU": False}, **floats, narrow="*bf16"
    )
    sizes = {"KERNEL": 10, "STRIDE": 5, "WIDTH": fusions.FIRST_WIDTH, "WINDOWS": fusions.FIRST_WINDOWS}
    sizes |= {"CHANNELS": fusions.FIRST_CHANNELS, "GELU": True, "PRECISION": "tf32"}
    found[f"first_frames {capability}"] = shared(
        fusion_kernels.first_convolution_kernel, capability, 4, 3, sizes,
        samples="*fp32", weights="*fp32", owners="*i64", y="*bf16",
    )
sizes = {"ROWS": fusions.ROWS, "COLUMNS": fusions.COLUMNS, "INNER": fusions.INNER, "BAND": fusions.BAND, "GELU": True}
tile = {
    "x": f"tensordesc<bf16[{fusions.ROWS}, {fusions.INNER}]>",
    "weight": f"tensordesc<bf16[{fusions.COLUMNS}, {fusions.INNER}]>",
    "y": f"tensordesc<bf16[{fusions.ROWS}, {fusions.COLUMNS}]>",
}
found["window_product 90"] = shared(
    fusion_kernels.window_product_kernel, 90, fusions.WARPS, fusions.STAGES, sizes, **tile, bias="*bf16"
)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_and_fit_the_shared_memory_they_are_asked_for():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}  # what was compiled before comes from Triton's cache
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    assert len(shared) == 5
    assert shared.pop("window_product 90") <= fusions.SHARED_MEMORY <= 227 << 10
    assert max(shared.values()) <= 99 << 10


SIZES = {"hidden_size": 32, "conv_dim": (16,) * 7, "conv_stride": (5, 2, 2, 2, 2, 2, 2), "num_hidden_layers": 2}


@pytest.mark.skipif(DEVICE == "cuda", reason="with a GPU the encoder takes these steps by itself: test_gpu")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("wav2vec2-group", "float32"),
        ("wav2vec2-group", "bfloat16"),
        ("wav2vec2-layer", "float32"),
        pytest.param("wav2vec2-layer", "bfloat16", marks=pytest.mark.slow),
        ("wavlm-group", "bfloat16"),
    ],
)
def test_an_encoder_of_such_steps_is_the_encoder(family, dtype, speech, tmp_path, monkeypatch):
    folder = save(tiny_model(family, **SIZES), tmp_path / "model")
    waves = [wave[8000:][: 900 + 500 * number] for number, wave in enumerate(speech[:2])]
    waves = waves[: 1 if family == "wav2vec2-layer" else 2]  # its norms are many rows, each a step of the interpreter
    exact = load_encoder(folder, dtype="float64").extract(waves, ("all",))
    plain = load_encoder(folder, dtype=dtype).extract(waves, ("all",))
    calls = []
    for name in ("window_product", "first_convolution", "add_norm", "norm_gelu"):
        step = getattr(fusions, name)
        monkeypatch.setattr(fusions, name, lambda *a, step=step, name=name, **o: calls.append(name) or step(*a, **o))
    monkeypatch.setattr(fusions, "is_supported", lambda device: True)
    monkeypatch.setattr(fusions, "is_window_product_supported", lambda weight, kernel: weight.dtype in fusions.HALF)
    monkeypatch.setattr(frontend_batched, "is_batching_faster", lambda device: True)
    fused = load_encoder(folder, dtype=dtype).extract(waves, ("all",))
    wanted = {"first_convolution", "add_norm"} | ({"window_product"} if dtype == "bfloat16" else set())
    # In float32 only the first convolution's norm comes with its GELU; the others' follow torch's products.
    assert set(calls) == wanted | ({"norm_gelu"} if family == "wav2vec2-layer" else set())
    for ours, theirs, right in zip(fused, plain, exact, strict=True):
        for name in right:
            errors = [((x[name].double() - right[name]).norm() / right[name].norm()).item() for x in (ours, theirs)]
            # Triton's interpreter cuts to bfloat16 where torch and GPUs round: at least twice the error.
            assert errors[0] < (3e-6 if dtype == "float32" else 3 * errors[1]), (name, errors)
