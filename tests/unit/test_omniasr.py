"""OmniASR, whose model is its own encoder: patched, unpadded, loaded and packed, it computes what stock computes."""

import copy
import pickle

import pytest
import torch
from conftest import OMNIASR, SPEECH, encoder_of, run, save, tiny_model, tiny_omniasr
from safetensors.torch import load_file, save_file

from w2v_attn import MultiHeadSelfAttention, load_encoder, read_audio, replace_attention, restore_attention
from w2v_attn.checkpoints import huggingface_folder
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.encoder import ragged
from w2v_attn.encoder.inputs import standardize_batch
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.patching.unpad import UnpaddedAudioModel

SAMPLES = (6000, 4100, 2111)
FRAMES = (18, 12, 6)
NO_DROPOUT = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout"), 0.0)
HEADS = [*OMNIASR]
AUDIO = 30  # the token that a frame of audio takes the place of


def a_batch():
    values = torch.zeros(len(SAMPLES), max(SAMPLES))
    mask = torch.arange(max(SAMPLES)) < torch.tensor(SAMPLES)[:, None]
    values[mask] = torch.randn(int(mask.sum()), generator=torch.Generator().manual_seed(0))
    return values, mask.long()


def result(model, **options):
    """What a model of any of the five classes makes of the batch: frames or logits, zeros where nothing is real."""
    values, mask = a_batch()
    real = torch.arange(FRAMES[0]) < torch.tensor(FRAMES)[:, None]
    if hasattr(model.config, "text_config"):
        tokens = torch.where(real, AUDIO, 3)
        found = model(input_ids=tokens, input_values=values[:, None], padding_mask=mask, **options)
        return found.logits if hasattr(found, "logits") else found.last_hidden_state
    found = run(model, values, mask, **options)
    found = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return found * real[..., None]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("unpad", [False, True])
def test_every_model_computes_the_same_with_the_same_gradients(head, unpad):
    theirs = tiny_omniasr(head)
    ours = replace_attention(copy.deepcopy(theirs), unpad=unpad)
    assert sum(isinstance(module, MultiHeadSelfAttention) for module in ours.modules()) == 3
    assert isinstance(encoder_of(ours), UnpaddedAudioModel) == unpad
    y, x = result(ours), result(theirs)
    torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(x)
    for one, model in ((y, ours), (x, theirs)):
        (one * direction).sum().backward()
        assert all(parameter.grad is not None for parameter in encoder_of(model).parameters())
    for (name, our), (_, their) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        scale = their.grad.abs().max().item()
        torch.testing.assert_close(our.grad, their.grad, rtol=0, atol=1e-4 * scale + 1e-5, msg=lambda m, n=name: n + m)


def test_recordings_of_a_padded_batch_are_what_they_are_alone_and_padding_is_zeros():
    stock = tiny_omniasr()
    model = replace_attention(copy.deepcopy(stock), unpad=True)
    values, mask = a_batch()
    with torch.no_grad():
        batched = run(model, values, mask)
        for row, (samples, frames) in enumerate(zip(SAMPLES, FRAMES, strict=True)):
            alone = run(stock, values[row : row + 1, :samples]).last_hidden_state[0]
            torch.testing.assert_close(batched.last_hidden_state[row, :frames], alone, rtol=0, atol=1e-5)
            assert not batched.last_hidden_state[row, frames:].any()
        assert batched.attention_mask.sum(-1).tolist() == [*FRAMES]
        assert torch.equal(batched.attention_mask, run(stock, values, mask).attention_mask)
        assert run(model, values, mask, output_attention_mask=False).attention_mask is None
        assert run(model, values).attention_mask is None


def test_a_batch_without_a_real_frame_gives_zeros():
    model = replace_attention(tiny_omniasr(), unpad=True)
    values, mask = a_batch()
    assert not run(model, values, torch.zeros_like(mask)).last_hidden_state.any()


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("recorded_before", [False, True])
def test_hidden_states_and_attentions_are_recorded_as_in_stock(unpad, recorded_before):
    theirs = tiny_omniasr("ForCTC", attention="eager")
    ours = copy.deepcopy(theirs)
    asked = {"output_hidden_states": True, "output_attentions": True}
    values, mask = a_batch()
    with torch.no_grad():
        if recorded_before:  # stock installs its hooks then
            run(ours, values, mask, **asked)
        replace_attention(ours, unpad=unpad)
        expected = run(theirs, values, mask, **asked)
        for _ in range(2):
            found = run(ours, values, mask, **asked)
            assert len(found.hidden_states) == 4
            assert len(found.attentions) == 3
            for row, T in enumerate(FRAMES):
                for our, their in zip(found.hidden_states, expected.hidden_states, strict=True):
                    assert our.shape == their.shape
                    torch.testing.assert_close(our[row, :T], their[row, :T], rtol=1e-4, atol=1e-4)
                for our, their in zip(found.attentions, expected.attentions, strict=True):
                    assert our.shape == their.shape
                    torch.testing.assert_close(our[row, :, :T, :T], their[row, :, :T, :T], rtol=1e-4, atol=1e-5)
        assert run(ours, values, mask).hidden_states is None


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_layers_are_dropped_where_stock_drops_them(rate):
    theirs = tiny_omniasr(layerdrop=rate, **NO_DROPOUT).train()
    ours = replace_attention(copy.deepcopy(theirs), unpad=True)
    for seed in range(4):
        found, drawn = [], []
        for model in (theirs, ours):
            torch.manual_seed(seed)
            found.append(result(model).detach())
            drawn.append(torch.rand([]))  # what is drawn next, by a head or the next step
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(*drawn)


def test_dropout_after_the_last_norm_is_that_of_the_config():
    model = replace_attention(tiny_omniasr(hidden_dropout=0.5, layerdrop=0.0), unpad=True).train()
    values, _ = a_batch()
    zeros = (run(model, values).last_hidden_state == 0).float().mean().item()
    assert 0.4 < zeros < 0.6


def test_checkpointed_activations_give_the_same_gradients_with_dropout():
    model = replace_attention(tiny_omniasr("ForCTC", layerdrop=0.0), unpad=True).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        result(model).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["AudioModel", "ForCTC"])
def test_restored_is_stock_and_copies_stay_unpadded(head, tmp_path):
    stock = tiny_omniasr(head)
    classes, expected = [type(module) for module in stock.modules()], result(stock)
    model = replace_attention(copy.deepcopy(stock), unpad=True)
    assert list(model.state_dict()) == list(stock.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        assert torch.equal(result(twin), result(model))
    model.save_pretrained(tmp_path)
    again = type(stock).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(result(again), expected, rtol=0, atol=1e-6)
    restore_attention(model)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(result(model), expected)


@pytest.mark.parametrize("head", HEADS)
def test_features_of_every_class_are_those_of_its_encoder(head, tmp_path):
    theirs = tiny_omniasr(head)
    encoder = load_encoder(save(theirs, tmp_path / head))
    assert type(encoder.model).__mro__[0].__name__ == "OmniASRAudioModel"
    assert encoder.unpacked_reason is None
    waves = [0.1 * torch.randn(n) for n in (9000, 400, 5003)]
    for wave, features in zip(waves, encoder.extract(waves), strict=True):
        with torch.no_grad():
            final = run(encoder_of(theirs), encoder.prepare(wave)[None]).last_hidden_state[0]
        torch.testing.assert_close(features["final"], final, rtol=0, atol=1e-4)


def test_weights_of_the_language_model_are_not_needed(tmp_path):
    """Not one of them is read: a folder without them gives the same encoder."""
    theirs = tiny_omniasr("ForConditionalGeneration")
    folder = save(theirs, tmp_path / "whole")
    whole = load_checkpoint(folder, with_head=True)
    assert type(whole.model).__name__ == "OmniASRAudioModel"
    assert {key.split(".")[0] for key in whole.unexpected} == {"language_model", "multi_modal_projector", "lm_head"}
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "audio_tower" in k}, folder / "model.safetensors", {"format": "pt"})
    encoder_alone = load_checkpoint(folder, with_head=True)
    assert encoder_alone.unexpected == ()
    for one, other in zip(whole.model.parameters(), encoder_alone.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("head", ["ForCTC", "ForConditionalGeneration"])
def test_missing_and_unknown_weights_are_named(head, tmp_path):
    folder = save(tiny_omniasr(head), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.audio_tower.layers.1.attention.other.weight"] = weights.pop(
        "model.audio_tower.layers.1.attention.q_proj.weight"
    )
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for with_head in (False, True):
        with pytest.raises(CheckpointError) as raised:
            load_checkpoint(folder, with_head=with_head)
        assert "layers.1.attention.q_proj.weight" in str(raised.value)
        assert "layers.1.attention.other.weight" in str(raised.value)


def test_an_older_transformers_names_the_version_that_has_the_family(tmp_path, monkeypatch):
    folder = save(tiny_omniasr("ForCTC"), tmp_path / "model")
    monkeypatch.setattr(huggingface_folder, "is_installed", lambda family: not family.startswith("omniasr"))
    with pytest.raises(CheckpointError, match=r"omniasr_ctc.*transformers>=5\.24"):
        load_checkpoint(folder)
    assert load_checkpoint(save(tiny_model("wav2vec2-layer"), tmp_path / "other")).model is not None


@pytest.mark.parametrize("preprocessor", ["OmniASR", "Wav2Vec2", None])
def test_a_quiet_recording_is_normalised_as_the_preprocessor_does(preprocessor, tmp_path):
    """With a deviation of 1e-3 the epsilon matters: 1e-5 is ten times the variance."""
    import transformers

    folder, wave = tmp_path / "model", 1e-3 * torch.randn(5000) + 0.3
    tiny_omniasr().save_pretrained(folder)
    extractor = getattr(transformers, f"{preprocessor or 'OmniASR'}FeatureExtractor")(do_normalize=True)
    if preprocessor is not None:
        extractor.save_pretrained(folder)
    encoder = load_encoder(folder)
    theirs = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values.flatten()
    torch.testing.assert_close(encoder.prepare(wave), theirs, rtol=0, atol=1e-4)
    (batched,) = standardize_batch([wave], encoder.checkpoint.normalize_epsilon)
    torch.testing.assert_close(batched, theirs, rtol=0, atol=1e-4)
    copied = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(copied.prepare(wave), encoder.prepare(wave))


def test_positions_are_computed_for_all_recordings_at_once_with_stocks_result():
    model = replace_attention(tiny_omniasr())
    assert isinstance(ragged.RaggedEncoder(model)._positions, ragged.FourierPositions)
    frames, lengths = torch.randn(29, 24), [7, 1, 21]
    with torch.no_grad():
        ours = ragged.RaggedEncoder(model)._positions(frames, lengths)
        theirs = torch.cat([model.encode_positions(part[None])[0] for part in frames.split(lengths)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_encoder_with_a_hook_on_a_module_goes_through_the_model_itself(tmp_path):
    encoder = load_encoder(save(tiny_omniasr(), tmp_path / "model"))
    wave = 0.1 * torch.randn(7000)
    (packed,) = encoder.extract([wave], ("all",))
    encoder.model.encode_positions.register_forward_hook(lambda _, __, output: output)
    assert "hooks" in encoder.unpacked_reason
    (alone,) = encoder.extract([wave], ("all",))
    for name, features in packed.items():
        torch.testing.assert_close(alone[name], features, rtol=0, atol=1e-5)


def test_changed_weights_change_features_and_copies_give_the_same(tmp_path):
    encoder = load_encoder(save(tiny_omniasr(), tmp_path / "model"))
    wave = 0.1 * torch.randn(7000)
    before = encoder.extract([wave])[0]["final"]
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin.extract([wave])[0]["final"], before)
    with torch.no_grad():
        encoder.model.encode_positions.conv.bias.add_(1.0)
    assert not torch.allclose(encoder.extract([wave])[0]["final"], before)


@pytest.mark.parametrize("kind", ["sliding_window", "chunked"])
def test_long_forms_are_exact_for_recordings_that_are_not_long(kind, tmp_path):
    folder = save(tiny_omniasr("ForCTC"), tmp_path / "model")
    exact, waves = load_encoder(folder), [0.1 * torch.randn(n) for n in (9000, 40_000)]
    options = LongForm(kind=kind, seconds=2.0, overlap=0.2)
    approximate = load_encoder(folder, long_form=options)
    ours, theirs = approximate.extract(waves), exact.extract(waves)
    torch.testing.assert_close(ours[0]["final"], theirs[0]["final"], rtol=0, atol=1e-5)
    assert ours[1]["final"].shape == theirs[1]["final"].shape
    assert (ours[1]["final"] - theirs[1]["final"]).abs().max() > 1e-6
    assert approximate.expected_seconds(16_000 * 60) > 0


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_and_records_the_same():
    model = replace_attention(tiny_omniasr(), unpad=True)
    values, _ = a_batch()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        theirs = run(model, values, output_hidden_states=True)
        ours = compiled(values[:, None], output_hidden_states=True)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-5)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4


@pytest.mark.slow
def test_five_minutes_in_one_piece_are_stocks_output_on_the_whole_recording(tmp_path):
    theirs = tiny_omniasr()
    clip = read_audio(sorted(SPEECH.rglob("*.flac"))[0])
    wave = clip.repeat(-(-300 * 16_000 // len(clip)))[: 300 * 16_000]
    encoder = load_encoder(save(theirs, tmp_path / "model"))
    ours = encoder.extract([wave])[0]["final"]
    with torch.no_grad():
        final = run(theirs, encoder.prepare(wave)[None]).last_hidden_state[0]
        error = (run(theirs.double(), encoder.prepare(wave)[None].double()).last_hidden_state[0] - final).abs().max()
    assert len(ours) == 14_999
    assert (ours - final).abs().max() <= max(1e-4, 4 * error.item())
