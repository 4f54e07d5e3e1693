"""Nothing is silently wrong: what a call returns is what stock computes from the model as it is then, or it raises.

The tables below are products: every family with every change of a model, every head with every way to be called. A
family that is added to `conftest.FAMILIES`, a head to `HEADS`, or a change to `CHANGES`, is tested with all others.
"""

import copy
import importlib
import pkgutil
from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import CONFORMERS, FAMILIES, TINY, in_large_table, large_table, save, tiny_bert, tiny_model
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils import parameters_to_vector, parametrize, vector_to_parameters

import w2v_attn
from w2v_attn import load_encoder, replace_attention, restore_attention
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.encoder import cpu_parallel
from w2v_attn.patching.attention_blocks import HuggingFaceAttention
from w2v_attn.patching.unpad import UnpaddedEncoder
from w2v_attn.transcription.load_recognizer import load_recognizer

LAYERS = ("layer_02", "final")


def noise(*seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(int(16_000 * n), generator=generator) for n in seconds]


def stock_of(model):
    """The model as it is now, with stock's attention, in evaluation mode."""
    model = copy.deepcopy(model)
    if any(isinstance(module, HuggingFaceAttention) for module in model.modules()):
        restore_attention(model)
    return model.eval()


@torch.no_grad()
def theirs(encoder, wave):
    """What stock makes of a waveform, from the encoder's model as it is now."""
    model = stock_of(encoder.model)
    found = {}
    # Its own forward replaced or not: the class's hooks run around whatever there is.
    hook = model.encoder.layers[1].register_forward_hook(
        lambda _, __, output: found.update(layer_02=output if isinstance(output, torch.Tensor) else output[0])
    )
    final = model(encoder.prepare(wave)[None].to(encoder.dtype)).last_hidden_state[0]
    hook.remove()
    return {"layer_02": found["layer_02"][0], "final": final}


# -------------------------------------------------------------------------- changes of a model between extractions


def stepped(optimizer, **options):
    def change(encoder):
        torch.manual_seed(1)
        parameters = list(encoder.model.parameters())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        made = optimizer(parameters, lr=0.02, fused=True, **options)
        versions = [parameter._version for parameter in parameters]
        made.step()
        assert versions == [parameter._version for parameter in parameters], "this one leaves a trace"
        encoder.model.zero_grad()

    return change


def written(write):
    """Every parameter, by a way that leaves no trace in version counters."""

    def change(encoder):
        for parameter in encoder.model.parameters():
            write(parameter)

    return change


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 1.1


def through_dlpack(parameter):
    torch.from_dlpack(parameter.detach()).data.mul_(1.1)


def through_storage(parameter):
    torch.empty(0).set_(parameter.untyped_storage()).mul_(1.1)


def through_a_flat_vector(encoder):
    flat = parameters_to_vector(encoder.model.parameters()).detach()
    vector_to_parameters(flat, encoder.model.parameters())
    encoder.extract(noise(0.3))
    flat.mul_(1.1)


def rows_swapped(encoder):
    weight = last(encoder).feed_forward.output_dense.weight if has_one_feed_forward(encoder) else linear(encoder).weight
    weight.data[[0, 1]] = weight.data[[1, 0]]


def one_number(encoder):
    linear(encoder).weight.data[0, 0] += 3.0


def buffers(encoder):
    for buffer in encoder.model.buffers():
        if buffer.is_floating_point():
            buffer.data.mul_(1.5)


def last(encoder):
    return encoder.model.encoder.layers[-1]


def has_one_feed_forward(encoder):
    return hasattr(last(encoder), "feed_forward")


def feed_forward(encoder):
    return last(encoder).feed_forward if has_one_feed_forward(encoder) else last(encoder).ffn1


def attention(encoder):
    return next(module for module in last(encoder).modules() if isinstance(module, HuggingFaceAttention))


def linear(encoder):
    """The projection of values: of queries and keys softmax forgives a change."""
    return attention(encoder)._projections()[2]


def norm(encoder):
    return next(module for module in last(encoder).modules() if isinstance(module, nn.LayerNorm))


def another_model(encoder):
    other = copy.deepcopy(encoder.model)
    for parameter in other.parameters():
        parameter.data.mul_(1.2)
    encoder.model = other


def another_block(encoder):
    encoder.model.encoder.layers[1] = copy.deepcopy(last(encoder))


def a_block_less(encoder):
    del encoder.model.encoder.layers[0:1]


def another_activation(encoder):
    feed_forward(encoder).intermediate_act_fn = nn.ReLU()


def activation_of_another_kind(encoder):
    feed_forward(encoder).intermediate_act_fn.forward = torch.tanh


def another_activation_of_convolutions(encoder):
    encoder.model.feature_extractor.conv_layers[3].activation = nn.Tanh()


def an_attribute_of_a_norm(encoder):
    norm(encoder).eps = 3.0


def a_norm_of_another_class(encoder):
    class Louder(nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    for parent in last(encoder).modules():
        for name, child in parent.named_children():
            if type(child) is nn.LayerNorm:
                louder = Louder(child.normalized_shape, eps=child.eps)
                louder.load_state_dict(child.state_dict())
                setattr(parent, name, louder)
                return


def a_dropout_that_is_none(encoder):
    place = next(
        (parent, name)
        for parent in last(encoder).modules()
        for name, child in parent.named_children()
        if name == "intermediate_dropout" and isinstance(child, nn.Dropout)
    )
    setattr(*place, nn.ReLU())


def scaling(encoder):
    attention(encoder).scaling *= 4


def lora(*names):
    def change(encoder):
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(2)
        inject_adapter_in_model(
            LoraConfig(r=2, lora_alpha=64, target_modules=list(names), init_lora_weights=False), encoder.model
        )

    return change


def louder(output):
    """What any module of a model returns, its states times 1.3."""
    if isinstance(output, torch.Tensor):
        return 1.3 * output
    if isinstance(output, tuple):
        return (1.3 * output[0], *output[1:])
    output.last_hidden_state = 1.3 * output.last_hidden_state
    return output


def own_forward(find):
    def change(encoder):
        module = find(encoder)
        inner = type(module).forward

        def forward(*args, **kwargs):
            return louder(inner(module, *args, **kwargs))

        module.forward = Bound(forward, module, inner)

    return change


class Bound:
    """A forward of an instance's own that a copy of the model takes along, for the copied module."""

    def __init__(self, function, module, inner):
        self.function, self.module, self.inner = function, module, inner

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo):
        module = copy.deepcopy(self.module, memo)

        def forward(*args, **kwargs):
            stock = next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("w2v_attn."))
            return louder(stock.forward(module, *args, **kwargs))

        return Bound(forward, module, self.inner)


class Doubled(nn.Module):
    factor = 1.0

    def forward(self, weight):
        return self.factor * weight


def a_parametrization_with_state(encoder):
    made = Doubled()
    parametrize.register_parametrization(linear(encoder), "weight", made)
    encoder.extract(noise(0.3))
    made.factor = 2.0


def doubled(_, __, output):
    return 2 * output if isinstance(output, torch.Tensor) else output


def a_hook(encoder):
    linear(encoder).register_forward_hook(doubled)


def a_hook_on_a_norm(encoder):
    norm(encoder).register_forward_pre_hook(lambda _, inputs: (inputs[0] + 0.5 * inputs[0].roll(1, -1),))


# Name -> (the change, and how the families are called that it does not concern).
CHANGES = {
    "fused AdamW": (stepped(torch.optim.AdamW), ()),
    "fused Adam": (stepped(torch.optim.Adam), ()),
    "fused SGD": (stepped(torch.optim.SGD, momentum=0.9), ()),
    "fused Adagrad": (stepped(torch.optim.Adagrad), ()),
    "p.data.copy_": (written(lambda p: p.data.copy_(p.data * 1.1)), ()),
    "p.data.mul_": (written(lambda p: p.data.mul_(1.1)), ()),
    "p.data = ": (written(lambda p: setattr(p, "data", p.data * 1.1)), ()),
    "numpy": (written(through_numpy), ()),
    "dlpack": (written(through_dlpack), ()),
    "storage": (written(through_storage), ()),
    "flat vector": (through_a_flat_vector, ()),
    "rows swapped": (rows_swapped, ()),
    "one number": (one_number, ()),
    "another model": (another_model, ()),
    "another block": (another_block, ()),
    "a block less": (a_block_less, ("wavlm",)),  # its first block holds the biases
    "another activation": (another_activation, ()),
    "forward of an activation": (activation_of_another_kind, ()),
    "activation of convolutions": (another_activation_of_convolutions, ()),
    "attribute of a norm": (an_attribute_of_a_norm, ()),
    "class of a norm": (a_norm_of_another_class, ()),
    "a dropout that is none": (a_dropout_that_is_none, ()),
    "scaling": (scaling, ()),
    "LoRA on attention": (lora("v_proj", "linear_v"), ("wavlm",)),  # stock's WavLM reads the weights beside it
    "LoRA on the feed-forward": (lora("intermediate_dense"), ()),
    "LoRA on the feature projection": (lora("projection"), ()),
    "forward of the model": (own_forward(lambda encoder: encoder.model), ()),
    "forward of a projection": (own_forward(linear), ("wavlm",)),  # stock's WavLM does not call it
    "forward of an attention": (own_forward(attention), ()),
    "forward of a norm": (own_forward(norm), ()),
    "parametrization with state": (a_parametrization_with_state, ()),
    "hook": (a_hook, ("wavlm",)),
    "hook on a norm": (a_hook_on_a_norm, ()),
}
# What stock itself does not do with a change, so that features stay as they were.
WITHOUT_EFFECT = {("wavlm", "scaling")}
SUBJECTS = [*FAMILIES, "bundled"]


def concerns(subject, change):
    return not any(subject.startswith(name) for name in CHANGES[change][1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Subject -> a folder with its checkpoint, written when it is asked for."""
    made = {"bundled": TINY}

    def folder(subject):
        if subject not in made:
            made[subject] = save(tiny_model(subject), tmp_path_factory.mktemp(subject) / "model")
        return made[subject]

    return folder


@pytest.mark.parametrize(
    ("subject", "change"),
    [case for case in large_table(SUBJECTS, CHANGES) if concerns(*case.values)],
    ids=lambda value: value,
)
def test_extraction_follows_every_change_of_the_model(subject, change, folders):
    encoder, waves = load_encoder(folders(subject)), noise(0.31, 0.47)
    before = encoder.extract(waves, LAYERS)
    CHANGES[change][0](encoder)
    if not hasattr(encoder.model.encoder.layers, "1"):
        pytest.skip("nothing is left")
    after = encoder.extract(waves, LAYERS)
    for wave, ours in zip(waves, after, strict=True):
        for layer, expected in theirs(encoder, wave).items():
            torch.testing.assert_close(ours[layer], expected, rtol=1e-4, atol=1e-4)
    moved = max((new["final"] - old["final"]).abs().max() for new, old in zip(after, before, strict=True))
    without = any(subject.startswith(name) and change == other for name, other in WITHOUT_EFFECT)
    assert (moved < 1e-5) if without else (moved > 1e-3), "this change shows nothing"


@pytest.mark.parametrize(
    ("subject", "register"), large_table(SUBJECTS, ["register_module_forward_hook", "register_module_forward_pre_hook"])
)
def test_extraction_calls_hooks_for_all_modules(subject, register, folders):
    encoder, waves, called = load_encoder(folders(subject)), noise(0.31), []
    before = encoder.extract(waves, LAYERS)[0]["final"]

    def hook(module, inputs, output=None):
        called.append(module)
        if isinstance(module, nn.Linear):
            return 1.5 * output if output is not None else (1.5 * inputs[0],)

    handle = getattr(torch_module, register)(hook)
    try:
        ours, expected = encoder.extract(waves, LAYERS)[0], theirs(encoder, waves[0])
    finally:
        handle.remove()
    if not subject.startswith("wavlm"):  # whose stock calls no projections
        torch.testing.assert_close(ours["final"], expected["final"], rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, nn.Linear) for module in called)
    assert (ours["final"] - before).abs().max() > 1e-3
    torch.testing.assert_close(encoder.extract(waves, LAYERS)[0]["final"], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("subject", ["bundled", "wav2vec2-layer", "conformer-relative"])
def test_every_extraction_during_a_run_of_hugging_faces_trainer_is_stocks(subject, folders, speech, tmp_path):
    """At the Trainer's defaults, whose optimizer is fused, and with the learning rate of fine-tuning."""
    import transformers

    encoder = load_encoder(folders(subject))
    prefix = "Wav2Vec2Conformer" if subject.startswith("conformer") else "Wav2Vec2"
    config = copy.deepcopy(encoder.config)
    config.ctc_zero_infinity, config.ctc_loss_reduction = True, "mean"
    model = getattr(transformers, f"{prefix}ForCTC")(config)
    setattr(model, model.base_model_prefix, encoder.model)
    rows = [{"input_values": wave[:8000], "labels": torch.tensor([1, 2, 3])} for wave in speech]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=3, learning_rate=3e-3, report_to=[], use_cpu=True
    )
    assert arguments.optim == "adamw_torch_fused"
    found = []

    class Between(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            found.append(encoder.extract(speech[:1])[0]["final"])
            torch.testing.assert_close(found[-1], theirs(encoder, speech[0])["final"], rtol=1e-4, atol=1e-4)
            assert model.training

    found.append(encoder.extract(speech[:1])[0]["final"])
    transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[Between()]).train()
    assert len(found) == 4
    assert all((new - old).abs().max() > 1e-3 for old, new in pairwise(found))


# ----------------------------------------------------------------------------------------------- modes and states


def noisy(subject, folders, **options):
    """An encoder of a model that training changes in every way there is."""
    encoder = load_encoder(folders(subject), **options)
    config = encoder.model.config
    config.layerdrop = config.mask_time_prob = config.mask_feature_prob = 0.5
    config.mask_time_length = config.mask_feature_length = 3
    if not hasattr(encoder.model, "masked_spec_embed"):
        encoder.model.masked_spec_embed = nn.Parameter(torch.randn(config.hidden_size))
    for module in encoder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return encoder


@pytest.mark.parametrize(("subject", "through"), large_table(SUBJECTS, ["ours", "the model"]))
def test_features_of_a_model_in_training_mode_are_those_of_evaluation(subject, through, folders):
    encoder, waves = noisy(subject, folders), noise(0.5)
    if through == "the model":  # as where LoRA was injected
        lora("feature_projection.projection", "intermediate_dense")(encoder)
    before = encoder.extract(waves, ("all",))[0]
    encoder.model.train()
    encoder.model.encoder.dropout.eval()  # somebody's choice, which stays
    state = copy.deepcopy(encoder.model.state_dict())
    for _ in range(2):
        for layer, features in encoder.extract(waves, ("all",))[0].items():
            torch.testing.assert_close(features, before[layer], rtol=0, atol=1e-6)
    assert [name for name, module in encoder.model.named_modules() if not module.training] == ["encoder.dropout"]
    assert all(torch.equal(value, state[name]) for name, value in encoder.model.state_dict().items())


def test_a_call_that_raises_leaves_the_modes_as_they_were(folders):
    encoder = load_encoder(folders("conformer-relative"))
    encoder.model.train()
    encoder.model.encoder.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.extract(noise(0.3))
    assert all(module.training for module in encoder.model.modules())


@pytest.mark.parametrize("subject", map(in_large_table, SUBJECTS))
def test_autocast_and_inference_mode_around_an_extraction_change_nothing(subject, folders):
    encoder, waves = load_encoder(folders(subject)), noise(0.5)
    before = encoder.extract(waves)[0]["final"]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.extract(waves)[0]["final"], before, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(load_encoder(folders(subject)).extract(waves)[0]["final"], before, rtol=0, atol=0)
        torch.testing.assert_close(encoder.extract(waves)[0]["final"], before, rtol=0, atol=0)
    torch.testing.assert_close(encoder.extract(waves)[0]["final"], before, rtol=0, atol=0)


@pytest.mark.parametrize("subject", map(in_large_table, SUBJECTS))
def test_a_layer_that_somebody_writes_into_is_no_other_layer(subject, folders):
    encoder, waves = load_encoder(folders(subject)), noise(0.5, 0.7)
    found, expected = encoder.extract(waves, ("all",)), encoder.extract(waves, ("all",))
    for number, recording in enumerate(found):
        for name, features in recording.items():
            features.fill_(7.0)
            expected[number][name].fill_(7.0)
            for ours, before in zip(found, expected, strict=True):
                assert all(torch.equal(ours[layer], before[layer]) for layer in ours), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_waveform_with_a_sample_that_is_no_number_is_refused(value, folders):
    (wave,) = noise(0.3)
    wave[700] = value
    for subject in ("wav2vec2-group", "conformer-rotary"):
        with pytest.raises(ValueError, match="NaN or infinite"):
            load_encoder(folders(subject)).extract([wave])


@pytest.mark.parametrize(("subject", "way"), large_table(SUBJECTS, ["deepcopy", "pickle"]))
def test_an_encoder_can_be_copied_and_the_copy_is_its_own(subject, way, folders):
    import pickle

    encoder, waves = load_encoder(folders(subject)), noise(0.5)
    before = encoder.extract(waves)[0]["final"]
    again = copy.deepcopy(encoder) if way == "deepcopy" else pickle.loads(pickle.dumps(encoder))
    torch.testing.assert_close(again.extract(waves)[0]["final"], before, rtol=0, atol=0)
    assert again.checkpoint.model is again.model
    for parameter in again.model.parameters():
        parameter.data.mul_(1.2)
    after = again.extract(waves)[0]["final"]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(encoder.extract(waves)[0]["final"], before, rtol=0, atol=0)
    assert list(again.model.state_dict()) == list(encoder.model.state_dict())
    for parameter in encoder.model.parameters():
        parameter.data.mul_(1.2)
    torch.testing.assert_close(encoder.extract(waves)[0]["final"], after, rtol=0, atol=1e-6)


def test_a_model_with_a_head_is_no_encoder(folders):
    encoder = load_encoder(folders("wav2vec2-group"))
    with pytest.raises(ValueError, match="base_model"):
        encoder.model = tiny_model("wav2vec2-group", "ForCTC")


def test_an_encoder_counts_the_frames_of_the_model_that_it_has_now(folders):
    encoder = load_encoder(folders("wav2vec2-group"))
    other = tiny_model("wav2vec2-group", conv_stride=(5, 2, 2, 2, 2, 2, 1))
    (wave,) = noise(0.5)
    encoder.model = replace_attention(other)
    assert len(encoder.extract([wave])[0]["final"]) == encoder.count_frames(len(wave)) == 48
    assert encoder.frame_rate() == 100


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_sew_of_any_squeeze_factor_is_stocks(factor, tmp_path):
    encoder = load_encoder(save(tiny_model("sew", squeeze_factor=factor), tmp_path / "sew"))
    assert encoder.unpacked_reason is None
    for wave, ours in zip(noise(0.31, 0.5, 0.47), encoder.extract(noise(0.31, 0.5, 0.47), LAYERS), strict=True):
        for layer, expected in theirs(encoder, wave).items():
            torch.testing.assert_close(ours[layer], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("subject", "head"), large_table(FAMILIES, ["ForCTC", "ForSequenceClassification"]))
def test_recognition_follows_the_model_and_its_mode(subject, head, tmp_path):
    changes = {"num_labels": 5} if head == "ForSequenceClassification" else {}
    folder = save(tiny_model(subject, head, **changes), tmp_path / "model")
    (folder / "vocab.json").write_text(str({s: n for n, s in enumerate("_|abcdefghi")}).replace("'", '"'))
    recognizer, (wave,) = load_recognizer(folder), noise(0.5)
    recognizer.model.config.layerdrop = 0.5
    recognizer.log_probabilities(wave)
    for parameter in recognizer.model.parameters():
        parameter.data.mul_(1.1)
    recognizer.model.train()
    with torch.autocast("cpu", torch.bfloat16):
        ours = recognizer.log_probabilities(wave)
    with torch.no_grad():
        logits = stock_of(recognizer.model)(recognizer.prepare(wave)[None]).logits[0]
    torch.testing.assert_close(ours, logits.log_softmax(-1), rtol=0, atol=1e-4)
    assert recognizer.model.training


# ------------------------------------------------------------------------------------- patched models, every head

HEADS = ("ForCTC", "ForSequenceClassification", "weighted layers", "ForAudioFrameClassification", "ForXVector")
ASKED = {"nothing": {}, "hidden states": {"output_hidden_states": True}, "attentions": {"output_attentions": True}}
SAMPLES = (9000, 6100, 4111)


def with_head(family, head, **changes):
    import transformers

    name, changes = head, {"mask_time_prob": 0.0, "layerdrop": 0.0, "num_labels": 5, **changes}
    if head == "weighted layers":
        name, changes["use_weighted_layer_sum"] = "ForSequenceClassification", True
    if name == "ForXVector":
        # Where stock's batch is the reference, no dilation: stock counts it wrongly.
        dilation = 1 if FAMILIES[family][1].get("feat_extract_norm") == "group" else 2
        changes |= {
            "tdnn_dim": (13, 17),
            "tdnn_kernel": (3, 2),
            "tdnn_dilation": (1, dilation),
            "xvector_output_dim": 7,
        }
    if family == "sew":  # whose group norm takes padding in, before anything is unpadded
        changes["feat_extract_norm"] = "layer"
    if not hasattr(transformers, f"{FAMILIES[family][0]}{name}"):
        pytest.skip("there is no such head")
    return tiny_model(family, name, attention="eager", **changes)


def a_batch(samples=SAMPLES):
    waves = noise(*(count / 16_000 for count in samples), seed=5)
    values = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = (torch.arange(values.shape[1]) < torch.tensor([len(wave) for wave in waves])[:, None]).long()
    return waves, values, mask


def outcome(model, calls):
    """(what each recording gets, gradients) of calls with the frames that are real: a sum over random directions."""
    model.zero_grad()
    found = []
    for values, mask, frames, asked in calls:
        output = model(values, attention_mask=mask, **asked)
        logits = output.logits
        for row, count in zip(logits, frames, strict=True):
            one = row if row.dim() == 1 else row[:count]
            direction = torch.randn(one.shape, generator=torch.Generator().manual_seed(len(found)))
            (one * direction).sum().backward(retain_graph=True)
            found.append(one.detach())
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "head", "unpad", "asked"), large_table(FAMILIES, HEADS, [False, True], ASKED))
def test_every_head_gives_stocks_outputs_and_gradients(family, head, unpad, asked):
    """Unpadded ones those of each recording alone, others those of stock's padded batch."""
    model = with_head(family, head)
    waves, values, mask = a_batch()
    frames = model._get_feat_extract_output_lengths(mask.sum(-1)).tolist()
    ours = replace_attention(copy.deepcopy(model), unpad=unpad)
    unpadded = isinstance(ours.base_model.encoder, UnpaddedEncoder)
    assert unpadded == (unpad and family not in CONFORMERS)
    alone = unpadded and getattr(model.config, "feat_extract_norm", "layer") == "layer"
    calls = [(values, mask, frames, {})]
    if alone:
        calls = [(wave[None], None, [count], {}) for wave, count in zip(waves, frames, strict=True)]
    expected, gradients = outcome(model, calls)
    found, our_gradients = outcome(ours, [(values, mask, frames, ASKED[asked])])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, gradients.get(name, 0 * gradient), rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize(
    ("family", "asked"), large_table((name for name in FAMILIES if name not in ("sew", *CONFORMERS)), ASKED)
)
def test_last_hidden_states_do_not_depend_on_what_else_is_asked_for(family, asked):
    model = replace_attention(tiny_model(family, attention="eager"), unpad=True)
    _, values, mask = a_batch()
    with torch.no_grad():
        plain, other = model(values, attention_mask=mask), model(values, attention_mask=mask, **ASKED[asked])
        torch.testing.assert_close(other.last_hidden_state, plain.last_hidden_state, rtol=0, atol=1e-5)
        if asked == "hidden states":
            states = other.hidden_states
            assert [state.shape for state in states] == [plain.last_hidden_state.shape] * 4
            post_norm = not type(model.encoder).__name__.endswith("StableLayerNorm")
            last = states[-1] if post_norm else model.encoder.layer_norm(states[-1])
            real = plain.last_hidden_state.abs().sum(-1) > 0
            torch.testing.assert_close(last[real], plain.last_hidden_state[real], rtol=0, atol=1e-5)


def test_classifiers_are_unpadded_though_transformers_always_asks_for_hidden_states():
    """Frames that blocks compute: only the real ones."""
    model = replace_attention(with_head("wav2vec2-layer", "ForSequenceClassification"), unpad=True)
    seen = []
    model.wav2vec2.encoder.layers[1].feed_forward.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    _, values, mask = a_batch()
    model(values, attention_mask=mask)
    real = int(model._get_feat_extract_output_lengths(mask.sum(-1)).sum())
    assert [tuple(x.shape) for x in seen] == [(1, real, 24)]


def test_outputs_of_unpadded_encoders_are_saved_as_plain_tensors(norm_style, tmp_path):
    _, values, mask = a_batch()
    with torch.no_grad():
        final = replace_attention(tiny_model(norm_style), unpad=True)(values, attention_mask=mask).last_hidden_state
    torch.save(final, tmp_path / "final.pt")
    assert torch.equal(torch.load(tmp_path / "final.pt", weights_only=True), final)
    assert vars(final) == {}


@pytest.mark.parametrize("family", ["wav2vec2-layer", "wavlm-layer", "data2vec-audio"])
@pytest.mark.parametrize("width", [24, 10])
def test_adapters_behind_unpadded_encoders_see_no_padding(family, width):
    changes = {"add_adapter": True, "num_adapter_layers": 3, "output_hidden_size": width}
    model = tiny_model(family, **changes)
    ours = replace_attention(copy.deepcopy(model), unpad=True)
    waves, values, mask = a_batch((30_000, 17_000, 9000))
    lengths = model._get_feat_extract_output_lengths(mask.sum(-1), add_adapter=True).tolist()
    weights = [torch.randn(n, width, generator=torch.Generator().manual_seed(n)) for n in lengths]
    expected = [model(wave[None]).last_hidden_state[0] for wave in waves]
    found = ours(values, attention_mask=mask).last_hidden_state
    for one, other, n in zip(found, expected, lengths, strict=True):
        assert len(other) == n
        torch.testing.assert_close(one[:n], other, rtol=0, atol=1e-4)
        assert not one[n:].any()
    sum((one * weight).sum() for one, weight in zip(expected, weights, strict=True)).backward()
    sum((one[: len(w)] * w).sum() for one, w in zip(found, weights, strict=True)).backward()
    for (name, p), q in zip(model.named_parameters(), ours.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-3, msg=name)
    assert type(restore_attention(ours).adapter).__module__.startswith("transformers.")


def noted(called, model, _, __, output):
    called.append(model)
    return 2 * output


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("family", ["wav2vec2-layer", "wavlm-group", "data2vec-audio"])
def test_changes_after_patching_are_followed_forward_and_backward(family, unpad):
    _, values, mask = a_batch()
    for change in ("scaling", "activation", "own forward", "hook on intermediate_dropout", "hook on pos_conv_embed"):
        stock = tiny_model(family, "ForCTC", mask_time_prob=0.0, layerdrop=0.0)
        ours = replace_attention(copy.deepcopy(stock), unpad=unpad)
        called = []
        for model in (stock, ours):
            encoder, hook = model.base_model.encoder, partial(noted, called, model)
            if change == "scaling":
                encoder.layers[1].attention.scaling *= 3
            elif change == "activation":
                encoder.layers[1].feed_forward.intermediate_act_fn = nn.ReLU()
            elif change == "own forward":
                dense = encoder.layers[1].feed_forward.intermediate_dense
                dense.forward = lambda x, dense=dense: 2 * F.linear(x, dense.weight, dense.bias)
            elif change == "hook on intermediate_dropout":
                dropout = encoder.layers[1].feed_forward.intermediate_dropout
                dropout.register_forward_hook(hook)
            else:
                for part in encoder.pos_conv_embed.modules():
                    if isinstance(part, nn.Conv1d):
                        part.register_forward_hook(hook)
        if family == "data2vec-audio":  # whose stock leaks padding between its convolutions
            calls = [(wave[None], None, [1000], {}) for wave in a_batch()[0]]
        else:
            calls = [(values, mask, stock._get_feat_extract_output_lengths(mask.sum(-1)).tolist(), {})]
        frames = stock._get_feat_extract_output_lengths(mask.sum(-1)).tolist()
        if family == "data2vec-audio" and not unpad:
            calls = [(values, mask, frames, {})]
        expected, gradients = outcome(stock, calls)
        found, our_gradients = outcome(ours, [(values, mask, frames, {})])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=change)
        scale = max(gradient.abs().max() for gradient in gradients.values())
        for name, gradient in our_gradients.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-4 * scale)
        if change.startswith("hook"):
            assert {id(model) for model in called} == {id(stock), id(ours)}


@pytest.mark.parametrize("part", ["", "conv", "padding", "activation"])
def test_hooks_on_the_positional_convolution_of_an_unpadded_encoder_are_called(part, norm_style):
    model, called = replace_attention(tiny_model(norm_style), unpad=True), []
    module = model.encoder.pos_conv_embed.get_submodule(part)
    module.register_forward_hook(lambda *_: called.append(1))
    _, values, mask = a_batch()
    with torch.no_grad():
        with_hook = model(values, attention_mask=mask).last_hidden_state
        module._forward_hooks.clear()
        torch.testing.assert_close(model(values, attention_mask=mask).last_hidden_state, with_hook, rtol=0, atol=1e-5)
    assert len(called) == 3


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("wavlm")])
def test_hooks_for_all_modules_are_called_by_patched_models(family):
    stock = tiny_model(family)
    ours = replace_attention(copy.deepcopy(stock), unpad=True)
    (wave,) = noise(0.5)
    handle = torch_module.register_module_forward_hook(lambda m, _, y: 1.5 * y if isinstance(m, nn.Linear) else None)
    try:
        with torch.no_grad():
            expected, found = (model(wave[None]).last_hidden_state for model in (stock, ours))
    finally:
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- masks of patched blocks


def block_and_stock(attention="sdpa"):
    stock = tiny_model("wav2vec2-layer", attention=attention)
    ours = replace_attention(copy.deepcopy(stock))
    return ours.encoder.layers[0].attention, stock.encoder.layers[0].attention


def masks(B, H, T, dtype):
    """Every shape that broadcasts to [B, H, T, T]; each row keeps a key."""
    generator = torch.Generator().manual_seed(3)
    for number in range(16):
        shape = [full if number >> axis & 1 else 1 for axis, full in enumerate((B, H, T, T))]
        allowed = torch.rand(shape, generator=generator) > 0.4
        allowed[..., 0] = True
        if dtype == "bool":
            yield allowed
        elif dtype == "lowest":
            yield torch.zeros(shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        else:
            yield torch.randn(shape, generator=generator).masked_fill(~allowed, -torch.inf)
    yield torch.ones(T, dtype=torch.bool)[None, None, :] if dtype == "bool" else torch.zeros(1, 1, T)


@pytest.mark.parametrize("dtype", ["bool", "lowest", "float"])
def test_masks_of_every_shape_given_to_a_block_are_stocks(dtype):
    ours, stock = block_and_stock("sdpa")
    B, H, T = 3, 4, 11
    x = torch.randn(B, T, 24, generator=torch.Generator().manual_seed(0))
    for mask in masks(B, H, T, dtype):
        with torch.no_grad():
            torch.testing.assert_close(ours(x, attention_mask=mask)[0], stock(x, attention_mask=mask)[0])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_masks_of_two_dimensions_are_those_of_real_frames(rows, dtype):
    ours, stock = block_and_stock()
    x = torch.randn(3, 11, 24, generator=torch.Generator().manual_seed(0))
    real = torch.arange(11) < torch.tensor([7, 11, 2])[:rows, None]
    with torch.no_grad():
        found, expected = ours(x, attention_mask=real.to(dtype))[0], stock(x, attention_mask=real[:, None, None])[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(3, 1, 1, 11, dtype=torch.long), r"convert 0/1 integers with \.bool\(\)"),
        (torch.ones(2, 11), r"\[3, 11\]"),
        (torch.ones(11, 11).bool(), r"\[1, 1, T, T\]"),
        (torch.zeros(3, 11).masked_fill(torch.arange(11) > 6, -1e9), "added to the scores"),
        (torch.ones(3, 1, 11, 12).bool(), "broadcast"),
        (torch.ones(1, 3, 1, 11, 11).bool(), "broadcast"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(mask, says):
    ours, _ = block_and_stock()
    with pytest.raises(ValueError, match=says):
        ours(torch.randn(3, 11, 24), attention_mask=mask)


@pytest.mark.parametrize("arguments", [{"is_causal": True}, {"softcap": 3.0}], ids=str)
def test_arguments_that_stock_would_heed_are_refused(arguments):
    ours, _ = block_and_stock()
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ours(torch.randn(1, 5, 24), **arguments)
    ours.is_causal = True
    with pytest.raises(ValueError, match="is_causal"):
        ours(torch.randn(1, 5, 24))


@pytest.mark.parametrize("change", [replace_attention, restore_attention])
def test_some_of_wavlms_blocks_alone_are_refused(change):
    model = tiny_model("wavlm-group")
    if change is restore_attention:
        replace_attention(model)
    with pytest.raises(ValueError, match="whole model"):
        change(model.encoder.layers[0])
    theirs = tiny_model("wavlm-group").encoder.layers[0].attention(torch.randn(1, 5, 24))[2]
    with pytest.raises(ValueError, match="only some"):
        replace_attention(tiny_model("wavlm-group")).encoder.layers[1].attention(
            torch.randn(1, 5, 24), position_bias=theirs
        )


# ------------------------------------------------------------------------------------------------------- the layer


def functions():
    """Every autograd function of the package."""
    for info in pkgutil.walk_packages(w2v_attn.__path__, "w2v_attn."):
        if not info.name.startswith(("w2v_attn.attention", "w2v_attn.encoder", "w2v_attn.ops", "w2v_attn.patching")):
            continue
        if info.name.endswith("_kernels"):  # they need Triton
            continue
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, torch.autograd.Function) and value.__module__ == info.name:
                yield value


def test_every_autograd_function_refuses_to_be_differentiated_twice():
    found = list(functions())
    assert len(found) >= 9
    for function in found:
        with torch.enable_grad(), pytest.raises(RuntimeError, match="second derivatives"):
            function.backward(None, torch.zeros(1))


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: lambda x: layer(x, return_weights=True)[0]])
def test_a_second_derivative_around_a_residual_connection_is_refused(wrap):
    layer = wrap(MultiHeadSelfAttention(16, 4))
    x = torch.randn(2, 9, 16, requires_grad=True)
    y = x + layer(x)
    with pytest.raises(RuntimeError, match=r"second derivatives .* create_graph"):
        torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
    torch.autograd.grad((x + layer(x)).pow(2).sum(), x)


@pytest.mark.parametrize("family", map(in_large_table, FAMILIES))
def test_a_second_derivative_of_a_patched_model_is_refused(family):
    model = replace_attention(tiny_model(family), unpad=True)
    x = torch.randn(1, 6000, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(model(x).last_hidden_state.sum(), x, create_graph=True)


@pytest.mark.parametrize("frames", [7, 600])
@pytest.mark.parametrize("gradients", [torch.enable_grad, torch.no_grad])
def test_forward_mode_derivatives_are_refused_and_not_left_out(frames, gradients):
    layer, x = MultiHeadSelfAttention(64, 2), torch.randn(1, frames, 64)
    with gradients(), pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|setup_context"):
        torch.func.jvp(layer, (x,), (x,))
    with (
        gradients(),
        torch.autograd.forward_ad.dual_level(),
        pytest.raises((RuntimeError, NotImplementedError), match="jvp"),
    ):
        layer(torch.autograd.forward_ad.make_dual(x, x))


def test_a_batch_of_gradients_is_refused_with_the_way_out():
    layer, x = MultiHeadSelfAttention(16, 4), torch.randn(2, 5, 16, requires_grad=True)
    y = layer(x)
    with pytest.raises(RuntimeError, match="once for each gradient"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)


@pytest.mark.parametrize("frames", [5, 600])
def test_what_comes_out_may_be_added_to_in_place(frames):
    layer, x = MultiHeadSelfAttention(16, 4), torch.randn(2, frames, 16, requires_grad=True)
    y = layer(x)
    y += x
    (ours,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad((x + layer(x)).square().sum(), x)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "auto"])
@pytest.mark.parametrize("kind", ["padding_mask", "attention_mask", "float"])
@pytest.mark.parametrize("way", ["whole block", "weights", "projections"])
def test_a_mask_that_was_changed_before_backward_is_noticed(backend, kind, way):
    layer, x = MultiHeadSelfAttention(16, 4, backend=backend), torch.randn(2, 9, 16, requires_grad=True)
    if way == "projections":
        layer.k_proj.register_forward_hook(lambda _, __, y: 1.0 * y)
    mask = torch.rand(2, 9) > 0.3 if kind == "padding_mask" else torch.rand(2, 1, 9, 9) > 0.3
    mask = torch.zeros(2, 1, 9, 9).masked_fill(~mask, -torch.inf) if kind == "float" else mask
    arguments = {"padding_mask" if kind == "padding_mask" else "attention_mask": mask}
    y = layer(x, **arguments, return_weights=way == "weights")
    y = y[0] if way == "weights" else y
    mask.copy_(torch.ones_like(mask))
    if way == "weights" and kind != "float":  # P is kept, and tells by itself which keys were forbidden
        pytest.skip("backward does not read it")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


LAYOUTS = {
    "strided": lambda x: torch.stack([x, x + 7.0], -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape) if x.dim() == 1 else x[..., :1].expand(x.shape),
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "with an offset": lambda x: torch.cat([torch.full((5,), 9.0, dtype=x.dtype), x.flatten()])[5:].view(x.shape),
    "reversed twice": lambda x: x.flip(0).flip(0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("maker", ["MKL's", "another"], indirect=True)
@pytest.mark.parametrize("frames", [9, 600])
def test_parameters_and_states_may_lie_in_memory_as_they_like(layout, maker, frames):
    """Kernels that are called below torch's own dispatch trust strides that nobody has checked."""
    layer = MultiHeadSelfAttention(64, 4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.1)
    x, dy = torch.randn(2, frames, 64), torch.randn(2, frames, 64)
    exact = copy.deepcopy(layer).double()
    x = LAYOUTS[layout](x)
    for name, parameter in list(layer.named_parameters()):
        laid_out = LAYOUTS[layout](parameter.detach())
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, nn.Parameter(laid_out))
        exact.get_parameter(name).data.copy_(laid_out)
    ours, expected = (
        (m(one), *torch.autograd.grad(m(one), [one, *m.parameters()], way))
        for m, one, way in (
            (layer, x.detach().requires_grad_(), LAYOUTS[layout](dy)),
            (exact, x.double().detach().requires_grad_(), LAYOUTS[layout](dy).double()),
        )
    )
    scale = max(float(other.detach().abs().max()) for other in expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_queries_keys_and_values_may_lie_in_memory_as_they_like(layout, backend):
    layer = MultiHeadSelfAttention(64, 4, backend=backend).eval()
    states = [torch.randn(2, 13, 64) for _ in range(3)]
    from w2v_attn.attention.masks import NO_MASK

    expected = layer.attend_projected(*(LAYOUTS[layout](x).contiguous() for x in states), NO_MASK, return_weights=False)
    leaves = [LAYOUTS[layout](x).detach().requires_grad_() for x in states]
    found = layer.attend_projected(*leaves, NO_MASK, return_weights=False)
    torch.testing.assert_close(found[0], expected[0])
    plain = [leaf.detach().contiguous().requires_grad_() for leaf in leaves]
    ours = torch.autograd.grad(found[0].square().sum(), leaves)
    others = torch.autograd.grad(layer.attend_projected(*plain, NO_MASK, return_weights=False)[0].square().sum(), plain)
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["tiled", "auto"])
def test_dropout_is_the_same_whatever_the_default_dtype_becomes(backend):
    layer, x = MultiHeadSelfAttention(16, 4, dropout=0.4, backend=backend), torch.randn(2, 600, 16, requires_grad=True)
    gradients = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(0)
        y = layer(x)
        torch.set_default_dtype(dtype)
        try:
            gradients.append(torch.autograd.grad(y.sum(), x)[0])
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, gradients[0]) for one in gradients[1:])


@pytest.mark.parametrize("unpad", [False, True])
def test_dropout_of_everything_gives_zeros_as_in_stock(unpad):
    changes = {"attention_dropout": 1.0, "activation_dropout": 1.0, "layerdrop": 0.0, "mask_time_prob": 0.0}
    changes |= dict.fromkeys(("hidden_dropout", "feat_proj_dropout", "final_dropout"), 0.0)
    stock = tiny_model("wav2vec2-layer", "ForCTC", **changes).train()
    ours = replace_attention(copy.deepcopy(stock), unpad=unpad)
    _, values, mask = a_batch()
    frames = stock._get_feat_extract_output_lengths(mask.sum(-1)).tolist()
    (expected, gradients), (found, our_gradients) = (outcome(m, [(values, mask, frames, {})]) for m in (stock, ours))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-3)
    assert our_gradients["wav2vec2.encoder.layers.0.attention.v_proj.weight"].isfinite().all()


@pytest.mark.parametrize("backend", ["tiled", "sdpa", "auto"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)], ids=str)
def test_a_narrow_bias_is_added_without_a_further_rounding(backend, dtypes):
    wide, narrow = dtypes
    layer, x = MultiHeadSelfAttention(16, 4, backend=backend, dtype=wide), torch.randn(2, 13, 16, dtype=wide)
    bias = (10 * torch.randn(4, 13, 13)).to(narrow)
    torch.testing.assert_close(
        layer(x, attention_mask=bias),
        layer(x, attention_mask=bias.to(wide)),
        rtol=0,
        atol=1e-6 if wide == torch.float32 else 1e-12,
    )


def test_torchs_counter_of_operations_counts_ours():
    from torch.utils.flop_counter import FlopCounterMode

    T, C = 600, 96
    layer, x = MultiHeadSelfAttention(C, 4), torch.randn(2, T, C, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    assert counter.get_total_flops() == 2 * (4 * 2 * T * C * C + 2 * 2 * T * T * C)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    least = 2 * 2 * (4 * 2 * T * C * C + 2 * 2 * T * T * C)
    assert least <= counter.get_total_flops() <= 1.5 * least  # scores come back once more


def test_torchs_counter_counts_an_extraction(folders, monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(cpu_parallel, "num_workers", lambda: 2)
    encoder, waves = load_encoder(folders("bundled")), noise(2.0, 2.0, 2.0)
    encoder.extract(waves)
    counts = []
    for model in (encoder.extract, lambda w: [theirs(encoder, one) for one in w]):
        with FlopCounterMode(display=False) as counter:
            model(waves)
        counts.append(counter.get_total_flops())
    ours, stock = counts
    assert 0.4 * stock < ours <= stock  # fewer products in convolutions, Fourier transforms that are not counted


def test_filter_banks_follow_their_model_too(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    encoder, (wave,) = load_encoder(tmp_path / "bert"), noise(0.5)
    before = encoder.extract([wave])[0]["final"]
    stepped(torch.optim.AdamW)(encoder)
    encoder.model.train()
    after = encoder.extract([wave])[0]["final"]
    torch.testing.assert_close(after, theirs(encoder, wave)["final"], rtol=0, atol=1e-4)
    assert (after - before).abs().max() > 1e-3
