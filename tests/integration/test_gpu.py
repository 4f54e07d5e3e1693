"""What a GPU computes is what a CPU computes, in every family, whichever core does it. Skipped where none is there."""

import copy

import pytest
import torch
from conftest import CONFORMERS, FAMILIES, save, tiny_model
from safetensors.torch import load_file
from test_unpadding import a_batch, loss_and_gradients

from w2v_attn import load_encoder, replace_attention, restore_attention
from w2v_attn.benchmarks.measurement import float32_is_float32
from w2v_attn.encoder.long_form import LongForm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOAT32 = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(autouse=True)
def stock_does_not_round_to_tf32():
    with float32_is_float32():
        yield


def on_both(folder, waves, **options):
    """(features on the GPU brought to the CPU, features on the CPU)."""
    there, here = (load_encoder(folder, device=device, **options) for device in ("cuda", "cpu"))
    found = [{name: x.cpu() for name, x in one.items()} for one in there.extract(waves, ("all",))]
    return found, here.extract(waves, ("all",))


def distance(ours, theirs):
    """Relative L2, of all frames of all recordings."""
    ours, theirs = (torch.cat([one.double().cpu() for one in many]) for many in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["auto", "tiled", "sdpa", "triton"])
def test_every_layer_of_every_family_is_the_cpus(family, backend, speech, tmp_path):
    if backend == "sdpa" and family not in ("wav2vec2-group", "wav2vec2-layer"):
        pytest.skip("the platform's kernels want 8·n channels a head, and some families more than that")
    sizes = {"hidden_size": 32} if backend == "sdpa" else {}
    folder = save(tiny_model(family, **sizes), tmp_path / "model")
    there, here = load_encoder(folder, device="cuda", backend=backend), load_encoder(folder, device="cpu")
    for ours, theirs in zip(there.extract(speech, ("all",)), here.extract(speech, ("all",)), strict=True):
        for name, features in ours.items():
            torch.testing.assert_close(features.cpu(), theirs[name], **FLOAT32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precisions_are_as_near_as_stocks(norm_style, dtype, speech, tmp_path):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "conv_dim": (64,) * 7}
    model = tiny_model(norm_style, **sizes)
    folder = save(model, tmp_path / "model")
    encoder = load_encoder(folder, device="cuda", dtype=dtype)
    waves = [encoder.prepare(wave) for wave in speech]
    with torch.no_grad():
        exact = [model.float()(wave.cpu().float()[None]).last_hidden_state[0] for wave in waves]
        stock = copy.deepcopy(model).to("cuda", getattr(torch, dtype))
        theirs = [stock(wave.to(stock.dtype)[None]).last_hidden_state[0] for wave in waves]
    ours = [features["final"] for features in encoder.extract(speech)]
    assert 0 < distance(ours, exact) < 1.1 * distance(theirs, exact)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_do_not_depend_on_the_neighbours(norm_style, dtype, speech, tmp_path):
    folder = save(tiny_model(norm_style, hidden_size=64, num_attention_heads=2), tmp_path / "model")
    encoder = load_encoder(folder, device="cuda", dtype=dtype)
    alone = [encoder.extract([wave])[0]["final"] for wave in speech]
    batched = [features["final"] for features in encoder.extract(speech[::-1])][::-1]
    assert distance(batched, alone) < (1e-6 if dtype == "float32" else 5e-3)


@pytest.mark.parametrize("kind", ["sliding_window", "chunked"])
def test_long_recordings_are_taken_as_on_the_cpu(norm_style, kind, speech, tmp_path):
    folder = save(tiny_model(norm_style), tmp_path / "model")
    ours, theirs = on_both(folder, speech, long_form=LongForm(kind=kind, seconds=1.0, overlap=0.2))
    for one, other in zip(ours, theirs, strict=True):
        for name, features in one.items():
            torch.testing.assert_close(features, other[name], **FLOAT32)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("sew", *CONFORMERS)])
@pytest.mark.parametrize("backend", ["auto", "triton", "tiled"])
def test_loss_and_every_gradient_without_padding_are_stocks(family, backend):
    if family == "data2vec-audio":
        pytest.skip("stock lets padding leak between its positional convolutions")
    theirs = tiny_model(family, "ForCTC", mask_time_prob=0.0, layerdrop=0.0).cuda()
    ours = replace_attention(copy.deepcopy(theirs), backend=backend, unpad=True)
    batch = {name: tensor.cuda() for name, tensor in a_batch().items()}
    (our_loss, our_gradients), (their_loss, their_gradients) = (loss_and_gradients(m, batch) for m in (ours, theirs))
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-6, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "triton", "sdpa"])
def test_gradients_under_autocast_are_as_near_as_stocks(norm_style, backend):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}
    exact = tiny_model(norm_style, "ForCTC", mask_time_prob=0.0, layerdrop=0.0, **sizes).cuda()
    batch = {name: tensor.cuda() for name, tensor in a_batch((16000, 12000, 9000)).items()}
    _, wanted = loss_and_gradients(exact, batch)
    ours = replace_attention(copy.deepcopy(exact), backend=backend, unpad=True)
    found = []
    for model in (ours, exact):
        with torch.autocast("cuda", torch.bfloat16):
            found.append(loss_and_gradients(model, batch)[1])
    errors = [distance([g.flatten() for g in one.values()], [g.flatten() for g in wanted.values()]) for one in found]
    assert 0 < errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_training_with_dropout_on_ragged_batches_learns(norm_style, backend):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "attention_dropout": 0.1}
    model = tiny_model(norm_style, "ForCTC", mask_time_prob=0.0, **sizes).cuda().train()
    replace_attention(model, backend=backend, unpad=True)
    batch = {name: tensor.cuda() for name, tensor in a_batch((16000, 12000, 9000)).items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    restore_attention(model)


def test_memory_that_is_short_makes_smaller_batches(call, tmp_path, clips):
    folder = save(tiny_model("wav2vec2-layer", conv_dim=(512,) * 7), tmp_path / "wide")
    options = ("device=cuda", f"model.checkpoint={folder}", f"audio={clips[0][0].parent}")
    assert call("extract", *options, f"output={tmp_path / 'plenty'}")[0] == 0
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        # The first frames of all recordings are 275 MB, those of one 20.
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 120 * 2**20) / total)
        code, out, err = call("extract", *options, f"output={tmp_path / 'short'}")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert code == 0, out + err
    assert "do not fit into memory" in out + err
    check_same_files(tmp_path / "plenty", tmp_path / "short")


def test_the_extract_command_writes_on_a_gpu_what_it_writes_on_a_cpu(call, group_checkpoint, tmp_path, clips):
    for device in ("cuda", "cpu"):
        options = (f"model.checkpoint={group_checkpoint}", f"audio={clips[0][0].parent}", f"output={tmp_path / device}")
        code, out, err = call("extract", f"device={device}", *options)
        assert code == 0, out + err
    check_same_files(tmp_path / "cuda", tmp_path / "cpu")


def check_same_files(one, other):
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")) for folder in (one, other)]
    assert names[0] == names[1]
    assert names[0]
    for name in names[0]:
        ours, theirs = load_file(one / name), load_file(other / name)
        for layer, features in ours.items():
            torch.testing.assert_close(features, theirs[layer], **FLOAT32)


def test_the_finetune_command_trains_on_a_gpu(call, tmp_path):
    code, out, err = call(
        "finetune", "experiment=bundled", "device=cuda", "training.max_steps=12", f"output={tmp_path / 'run'}"
    )
    assert code == 0, out + err
