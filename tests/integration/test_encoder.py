"""Features of a recording equal stock's on that recording alone, whatever else is in the list."""

import pytest
import torch
from conftest import ALL_FAMILIES, GROUP_NORM, SIZES, encoder_of, save, tiny_bert, tiny_model

from w2v_attn import load_encoder
from w2v_attn.encoder import cost
from w2v_attn.encoder.layers import record_layers
from w2v_attn.encoder.waveforms import MAX_FRAMES


def stock_features(folder, wave):
    """Return stock's hidden states, from embed to the last block, and last_hidden_state, for one recording."""
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    values = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    states = []
    blocks = encoder_of(model).layers
    hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
    hooks += [
        layer.register_forward_hook(lambda _, __, out: states.append(out if isinstance(out, torch.Tensor) else out[0]))
        for layer in blocks
    ]
    with torch.no_grad():
        final = model(values).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [state[0] for state in states], final[0]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_layer_is_stocks_on_that_recording_alone(family, speech, tmp_path):
    folder = save(tiny_model(family), tmp_path / family)
    encoder = load_encoder(folder)
    found = encoder.extract(speech, layers=("all",))
    assert list(found[0]) == ["embed", "layer_01", "layer_02", "layer_03", "final"]
    for wave, ours in zip(speech, found, strict=True):
        states, final = stock_features(folder, wave)
        for our, their in zip(ours.values(), [*states, final], strict=True):
            torch.testing.assert_close(our, their, rtol=0, atol=1e-4)


def test_features_do_not_depend_on_the_other_recordings_nor_on_the_order(group_checkpoint, speech):
    encoder = load_encoder(group_checkpoint)
    alone = [encoder.extract([wave])[0]["final"] for wave in speech]
    batched = encoder.extract(speech)
    backwards = encoder.extract(speech[::-1])[::-1]
    for one, two, three in zip(alone, batched, backwards, strict=True):
        torch.testing.assert_close(two["final"], one, rtol=0, atol=1e-5)
        torch.testing.assert_close(three["final"], one, rtol=0, atol=1e-5)


def test_stock_padding_would_change_group_norm_features(group_checkpoint, speech):
    """The reason for the law above: stock changes the shorter recordings of a batch."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(group_checkpoint).eval()
    short, long = speech[1], speech[0]
    padded = torch.zeros(2, len(long))
    padded[0, : len(short)], padded[1] = short, long
    with torch.no_grad():
        alone = model(short[None]).last_hidden_state[0]
        mask = (torch.arange(len(long)) < torch.tensor([len(short), len(long)])[:, None]).long()
        in_batch = model(padded, attention_mask=mask).last_hidden_state[0, : len(alone)]
    assert (alone - in_batch).abs().max() > 1e-3


def test_the_shortest_recording_gives_a_frame_and_a_shorter_one_a_reason(group_checkpoint):
    encoder = load_encoder(group_checkpoint)
    assert encoder.input.min_samples == 400
    assert encoder.extract([torch.randn(400)])[0]["final"].shape == (1, 24)
    for samples in (0, 1, 399):
        with pytest.raises(ValueError, match=rf"{samples} samples.* at least 400"):
            encoder.extract([torch.randn(samples)])


def test_several_channels_are_averaged_and_channels_last_are_refused(group_checkpoint):
    encoder, channels = load_encoder(group_checkpoint), torch.randn(2, 400)
    found = encoder.extract([channels])[0]["final"]
    assert torch.equal(found, encoder.extract([channels.mean(0)])[0]["final"])
    with pytest.raises(ValueError, match=r"x\.T"):
        encoder.extract([channels.T])


@pytest.mark.parametrize("samples", [400, 719, 720, 721, 5000, 16000])
def test_the_number_of_frames_is_the_fold_over_the_convolutions(group_checkpoint, samples):
    frames = samples
    for kernel, stride in zip(SIZES["conv_kernel"], SIZES["conv_stride"], strict=True):
        frames = (frames - kernel) // stride + 1
    assert len(load_encoder(group_checkpoint).extract([torch.randn(samples)])[0]["final"]) == frames


def test_silence_gives_finite_features(group_checkpoint):
    found = load_encoder(group_checkpoint).extract([torch.zeros(3000), torch.full((3000,), 0.5)], layers=("all",))
    assert all(torch.isfinite(tensor).all() for features in found for tensor in features.values())


@pytest.mark.parametrize(
    ("layers", "says"), [(("layer_04",), "layer_03"), (("fnal",), "did you mean final"), ((), "at least one")]
)
def test_an_unknown_layer_is_an_error(group_checkpoint, layers, says):
    with pytest.raises(ValueError, match=says):
        load_encoder(group_checkpoint).extract([torch.randn(800)], layers=layers)


def test_layers_come_in_the_order_of_computation_each_once(group_checkpoint):
    encoder = load_encoder(group_checkpoint)
    found = encoder.extract([torch.randn(800)], layers=("final", "layer_02", "embed", "final"))[0]
    assert list(found) == ["embed", "layer_02", "final"]


@pytest.mark.parametrize("do_normalize", [False, True])
def test_the_checkpoints_own_normalisation_is_applied(tmp_path, do_normalize):
    from transformers import Wav2Vec2FeatureExtractor

    folder = save(tiny_model("wav2vec2-layer"), tmp_path / "m")
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    wave = 5 + 3 * torch.randn(4000)
    _, theirs = stock_features(folder, wave)
    torch.testing.assert_close(load_encoder(folder).extract([wave])[0]["final"], theirs, rtol=0, atol=1e-4)


def test_without_a_preprocessor_config_the_default_is_reported(tmp_path):
    folder = tmp_path / "bare"
    tiny_model("wav2vec2-group").save_pretrained(folder)
    checkpoint = load_encoder(folder).checkpoint
    assert checkpoint.do_normalize
    assert "default" in checkpoint.normalize_source


def test_frame_rates_are_those_of_the_frames(tmp_path):
    assert load_encoder(save(tiny_model("wav2vec2-group"), tmp_path / "a")).frame_rate() == 50.0
    sew = load_encoder(save(tiny_model("sew"), tmp_path / "b"))
    assert (sew.frame_rate("layer_01"), sew.frame_rate("final")) == (25.0, 50.0)
    assert sew.input.min_samples == 720
    found = sew.extract([torch.randn(32_000)], layers=("layer_01", "final"))[0]
    assert len(found["final"]) == 99 // 2 * 2 or len(found["final"]) == 99
    assert abs(len(found["layer_01"]) / 2.0 - 25) < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes_are_as_accurate_as_stock(group_checkpoint, speech, dtype):
    from transformers import AutoModel

    exact = load_encoder(group_checkpoint).extract(speech[:1])[0]["final"]
    stock = AutoModel.from_pretrained(group_checkpoint, dtype=getattr(torch, dtype)).eval()
    wave = (speech[0] - speech[0].mean()) / torch.sqrt(speech[0].var(unbiased=False) + 1e-7)
    with torch.no_grad():
        theirs = stock(wave[None].to(stock.dtype)).last_hidden_state[0]
    ours = load_encoder(group_checkpoint, dtype=dtype).extract(speech[:1])[0]["final"]
    assert ours.dtype == getattr(torch, dtype)
    assert (ours.double() - exact).norm() <= 1.1 * (theirs.double() - exact).norm() + 1e-4


def test_float64_features_of_a_loud_hum_are_stocks(tmp_path):
    """With filters that remove the hum: the rest is smaller than the rounding error of its power."""
    model = tiny_model("wav2vec2-group")
    curvature = torch.tensor([1.0, -2.0, 1.0])
    with torch.no_grad():
        model.feature_extractor.conv_layers[0].conv.weight.zero_()[:, 0, 3:6] = curvature
    folder = save(model, tmp_path / "model")
    time = torch.arange(8000) / 16_000
    wave = torch.sin(2 * torch.pi * 50 * time) + 1e-4 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(folder, dtype="float64")
    ours = encoder.extract([wave])[0]["final"]
    with torch.no_grad():
        theirs = model.double()(encoder.prepare(wave)[None]).last_hidden_state[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_features_of_a_batch_take_an_eighth_of_the_memory_at_most(group_checkpoint, tmp_path, monkeypatch):
    encoder, limit = load_encoder(group_checkpoint, device="cpu"), tmp_path / "memory.max"
    whole = encoder.frame_budget()
    # Five layers of 24 channels in float32, twice.
    for said, budget in (("8000000", 8_000_000 // 8 // (2 * 4 * 24 * 5)), ("1", 1), ("max", whole), ("", whole)):
        limit.write_text(said)
        monkeypatch.setattr(cost, "MEMORY_LIMIT_FILES", (tmp_path / "absent", limit))
        assert encoder.frame_budget() == budget
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 << 20)
    assert encoder.frame_budget() <= MAX_FRAMES


def test_an_unavailable_device_is_an_error(group_checkpoint):
    with pytest.raises(ValueError, match="device=auto"):
        load_encoder(group_checkpoint, device="cuda:77")
    with pytest.raises(ValueError, match="device=auto"):
        load_encoder(group_checkpoint, device="gpu")


def test_the_adapter_of_a_family_changes_only_the_last_frame_rate(tmp_path):
    changes = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 24, **GROUP_NORM}
    encoder = load_encoder(save(tiny_model("wav2vec2-group", **changes), tmp_path / "adapter"))
    found = encoder.extract([torch.randn(64_000)], layers=("layer_03", "final"))[0]
    assert encoder.frame_rate("final") == 12.5
    assert abs(len(found["final"]) - len(found["layer_03"]) / 4) <= 1


@pytest.mark.parametrize("positions", ["relative_key", "relative", "rotary", None])
def test_features_of_filter_banks_equal_stocks(positions, speech, tmp_path):
    from transformers import SeamlessM4TFeatureExtractor

    theirs = tiny_bert(positions)
    theirs.save_pretrained(tmp_path / "bert")
    encoder = load_encoder(tmp_path / "bert")
    parity = set()
    for wave, features in zip(speech, encoder.extract(speech, ("layer_02", "final")), strict=True):
        inputs = SeamlessM4TFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad(), record_layers(theirs, ("layer_02",)) as found:
            final = theirs(**inputs).last_hidden_state
        real = inputs["attention_mask"].bool()[0]  # a window without a neighbour makes half a frame, which is masked
        parity.add(bool(real.all()))
        assert len(features["final"]) == encoder.count_frames(len(wave)) == real.sum()
        torch.testing.assert_close(features["layer_02"], found["layer_02"][0, real], rtol=0, atol=1e-4)
        torch.testing.assert_close(features["final"], final[0, real], rtol=0, atol=1e-4)
    assert parity == {True, False}


def test_the_shortest_recording_for_filter_banks_gives_a_frame(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    encoder = load_encoder(tmp_path / "bert")
    assert encoder.input.min_samples == 560
    features = encoder.extract([torch.randn(560)])[0]["final"]
    assert features.shape == (1, 24)
    assert features.isfinite().all()
    with pytest.raises(ValueError, match="at least 560"):
        encoder.extract([torch.randn(559)])
