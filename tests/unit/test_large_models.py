"""Large models use the memory of their weights once, and give the features that small ones give."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import save, tiny_model

from w2v_attn import load_encoder
from w2v_attn.checkpoints.encoder_parts import encoder_parts
from w2v_attn.checkpoints.huggingface_folder import read_config, read_weights
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.encoder import encoder as encoder_module
from w2v_attn.encoder import ragged, weight_memory
from w2v_attn.encoder.weight_memory import linear_weights
from w2v_attn.ops import gemm

STYLES = ("wav2vec2-group", "wav2vec2-layer", "wavlm-layer", "omniasr")
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def noise(*seconds):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(int(16_000 * length), generator=generator) for length in seconds]


@pytest.fixture
def too_large(monkeypatch):
    """Every model is too large for copies of its weights."""
    monkeypatch.setattr(weight_memory, "PREPACK_SHARE", 0.0)


@pytest.fixture(params=STYLES)
def folder(request, tmp_path):
    return save(tiny_model(request.param), tmp_path / "checkpoint")


def test_features_without_copies_of_weights_are_those_with_copies(folder, monkeypatch):
    waves = noise(0.3, 1.7, 0.9)
    expected = load_encoder(folder).extract(waves, "all")
    monkeypatch.setattr(weight_memory, "PREPACK_SHARE", 0.0)
    found = load_encoder(folder).extract(waves, "all")
    for ours, theirs in zip(found, expected, strict=True):
        for name, features in theirs.items():
            torch.testing.assert_close(ours[name], features, rtol=0, atol=2e-5)


def test_a_large_model_is_computed_from_the_weights_where_they_are(folder, too_large):
    encoder = load_encoder(folder)
    encoder.extract(noise(0.5)[0])
    prepared = encoder._prepared.encoder
    shared = {weight.data_ptr() for weight in linear_weights(encoder_parts(encoder.model).blocks)}
    block = prepared._blocks[0]
    used = [block._q, *block._kv._linears, block._out, block._up, block._down]
    assert {linear._weight.data_ptr() for linear in used} <= shared


@pytest.mark.parametrize("write", ["in place", "data", "numpy", "parameter"])
def test_a_write_to_a_weight_of_a_large_model_is_followed(write, folder, too_large):
    encoder, wave = load_encoder(folder), noise(0.5)[0]
    before = encoder.extract(wave)["final"]
    linear = encoder_parts(encoder.model).blocks[0].feed_forward.intermediate_dense
    changed = linear.weight.detach() * 1.5
    with torch.no_grad():
        if write == "in place":
            linear.weight.copy_(changed)
        elif write == "data":
            linear.weight.data = changed
        elif write == "numpy":
            linear.weight.detach().numpy()[:] = changed.numpy()
        else:
            linear.weight = torch.nn.Parameter(changed)
    after = encoder.extract(wave)["final"]
    assert not torch.allclose(before, after, atol=1e-3)
    encoder._prepared = None
    assert torch.equal(encoder.extract(wave)["final"], after)


def test_the_weights_of_a_large_model_are_not_hashed_at_each_call(folder, too_large, monkeypatch):
    encoder, wave, hashed = load_encoder(folder), noise(0.5)[0], []
    blocks = {id(weight) for weight in linear_weights(encoder_parts(encoder.model).blocks)}
    real = encoder_module.checksum

    def checksum(tensors, *, shared=()):
        shared = list(shared)
        hashed.append({id(tensor) for tensor in tensors} - {id(tensor) for tensor in shared})
        return real(tensors, shared=shared)

    monkeypatch.setattr(encoder_module, "checksum", checksum)
    encoder.extract(wave)
    assert hashed
    assert not hashed[0] & blocks


def test_a_model_that_does_not_fit_runs_one_pack_at_a_time_and_says_so(folder, monkeypatch, caplog):
    encoder = load_encoder(folder)
    waves = noise(*[0.5] * 20)
    monkeypatch.setattr(encoder_module.cpu_parallel, "num_workers", lambda: 4)
    assert len(encoder._packs(waves, 100)[1]) > 1
    monkeypatch.setattr(weight_memory, "memory_limit", lambda: 1000)
    alone, parallel = encoder._packs(waves, 100)
    assert alone
    assert not parallel
    load_encoder(folder)
    assert "are read from the disk again" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
def test_products_without_16_bit_instructions_are_rounded_once(dtype, gelu, monkeypatch):
    monkeypatch.setattr(gemm, "_has_instructions", lambda dtype: False)
    monkeypatch.setattr(gemm, "_is_right", lambda dtype: dtype is torch.float32)
    monkeypatch.setattr(gemm, "WIDENED_TILE", 20_000)  # several tiles, the last one smaller
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((50, 192), (300, 192), (300,)))
    assert x.numel() * len(weight) >= gemm.MIN_WORK
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    exact = torch.nn.functional.gelu(exact) if gelu else exact
    found = gemm.linear(x, weight, bias, gelu=gelu)
    assert found.dtype == dtype
    # Half a unit in the last place, and the rounding of sums in float32.
    half_unit = torch.finfo(dtype).eps / 2
    assert bool(((found.double() - exact).abs() <= 1.01 * half_unit * exact.abs() + 1e-4).all())


def test_batched_products_without_16_bit_instructions_are_rounded_once(monkeypatch):
    monkeypatch.setattr(gemm, "_has_instructions", lambda dtype: False)
    monkeypatch.setattr(gemm, "_is_right", lambda dtype: dtype is torch.float32)
    a, b = torch.randn(3, 40, 16).bfloat16(), torch.randn(3, 50, 16).bfloat16()
    exact = a.double() @ b.double().transpose(1, 2)
    error = (gemm.bmm_nt(a, b).double() - exact).abs()
    assert bool((error <= 1.01 * torch.finfo(torch.bfloat16).eps / 2 * exact.abs() + 1e-5).all())


def maps_of(path):
    """Return whether a file is mapped into this process."""
    return str(path.resolve()) in Path("/proc/self/maps").read_text()


@ON_LINUX
def test_weights_whose_dtype_is_kept_are_mapped_and_others_are_not(folder):
    converted = load_checkpoint(folder, dtype="bfloat16")
    assert not maps_of(folder / "model.safetensors")
    assert {parameter.dtype for parameter in converted.model.parameters()} == {torch.bfloat16}
    kept = load_checkpoint(folder, dtype="float32")
    assert maps_of(folder / "model.safetensors")
    assert {parameter.dtype for parameter in kept.model.parameters()} == {torch.float32}


def test_weights_are_the_same_in_one_file_and_in_shards_in_any_dtype(folder, tmp_path):
    whole = load_checkpoint(folder).model
    whole.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    for path in folder.glob("preprocessor_config.json"):
        (tmp_path / "shards" / path.name).write_bytes(path.read_bytes())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for dtype in ("float32", "bfloat16", "float64"):
        found = load_checkpoint(tmp_path / "shards", dtype=dtype).model.state_dict()
        for name, tensor in whole.state_dict().items():
            assert torch.equal(found[name], tensor.to(getattr(torch, dtype)))


def test_weights_for_another_device_are_converted_on_their_way(folder):
    config = read_config(folder)
    model_class = type(load_checkpoint(folder).model)
    model, _ = read_weights(model_class, config, folder, torch.bfloat16, torch.device("meta"))
    assert {(one.device.type, one.dtype) for one in model.parameters()} == {("meta", torch.bfloat16)}


def test_prepacked_and_shared_weights_give_the_same_long_recording(too_large, tmp_path):
    folder = save(tiny_model("wav2vec2-layer"), tmp_path / "checkpoint")
    wave = noise(6.0)[0]
    shared = load_encoder(folder)
    model = shared.model
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged.TransformerBlock, "_is_chunked", lambda self, length, x, reach: True)
        ours = shared.extract(wave)["final"]
        patch.setattr(weight_memory, "PREPACK_SHARE", 1.0)
        shared.model = model
        torch.testing.assert_close(shared.extract(wave)["final"], ours, rtol=0, atol=2e-5)
