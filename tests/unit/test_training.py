"""The modules of fine-tuning, each with its laws."""

import copy
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZES, SPEECH, tiny_bert, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from w2v_attn import replace_attention
from w2v_attn.checkpoints.loading import Checkpoint
from w2v_attn.corpus.rows import Row
from w2v_attn.training import assembly, resume
from w2v_attn.training.build_model import build_model
from w2v_attn.training.metrics import classification_metrics, transcription_metrics
from w2v_attn.training.optimization import lr_multiplier, parameter_groups
from w2v_attn.training.options import (
    AugmentationOptions,
    CtcOptions,
    DataOptions,
    Factor,
    OptimizerOptions,
    Recipe,
    RegularizationOptions,
    ScheduleOptions,
)
from w2v_attn.training.regularization import (
    draw_spans,
    patch_layerdrop,
    patch_spec_augment,
    restore_layerdrop,
    restore_spec_augment,
)
from w2v_attn.training.speech_dataset import Augmentation, LengthBatchSampler, PaddingCollator
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.trainer import losses_of
from w2v_attn.training.training_errors import DataError
from w2v_attn.training.unpadded_frontend import patch_frontend, restore_frontend, set_lengths
from w2v_attn.training.vocabulary import from_head, from_texts

SIZES_OF_ENCODER = {name: size for name, size in SIZES.items() if name != "vocab_size"}

# ----------------------------------------------------------------------------------------------------- schedule


def test_the_rate_rises_holds_and_decays_as_the_authors_have_it():
    factor = lr_multiplier(ScheduleOptions(), 1000)
    assert factor(0) == pytest.approx(0.01)
    assert factor(50) == pytest.approx(0.505)
    assert factor(100) == factor(499) == 1.0
    assert factor(750) == pytest.approx(math.sqrt(0.05))  # half-way down, in the exponent
    assert factor(1000) == factor(5000) == pytest.approx(0.05)


def test_a_linear_rate_ends_at_zero():
    factor = lr_multiplier(ScheduleOptions(warmup=0.1, hold=0.0, decay="linear", init_scale=0.0, final_scale=0.0), 1000)
    assert [factor(0), factor(100), factor(550), factor(1000)] == [0.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    "wrong", [{"warmup": -0.1}, {"warmup": 0.7, "hold": 0.6}, {"decay": "steep"}, {"final_scale": 0.0}]
)
def test_an_invalid_schedule_is_reported(wrong):
    with pytest.raises(ValueError, match="schedule"):
        lr_multiplier(ScheduleOptions(**wrong), 100)


# ------------------------------------------------------------------------------------------------------ batches

lengths_of = st.lists(st.floats(0.1, 30), min_size=1, max_size=80)


@given(lengths=lengths_of, seconds=st.floats(1, 100), seed=st.integers(0, 9))
def test_a_pass_has_every_recording_once_within_the_budget(lengths, seconds, seed):
    batches = LengthBatchSampler(lengths, seconds, 1, seed=seed).epoch_batches(3)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= seconds


@given(lengths=lengths_of, world_size=st.integers(1, 4))
def test_processes_share_the_batches_of_one(lengths, world_size):
    alone = list(LengthBatchSampler(lengths, 20, 12 * world_size, seed=1))
    shared = [
        list(LengthBatchSampler(lengths, 20, 12, seed=1, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    assert [batch for step in zip(*shared, strict=True) for batch in step] == alone


def test_each_pass_is_another_order_and_the_same_again():
    batches = LengthBatchSampler([1.0] * 50, 5, 30, seed=2)
    assert list(batches) == list(batches)
    assert batches.epoch_batches(0) != batches.epoch_batches(1)
    assert {number for batch in batches for _, number in batch} == {0, 1, 2}


def counted(batches):
    return Counter(index for batch in batches for index in batch)


def test_every_class_occurs_in_an_epoch_as_often_as_the_most_common_one():
    classes = ["a"] * 30 + ["b"] * 21 + ["c"] * 13 + ["d"]
    batches = LengthBatchSampler([1.0] * len(classes), 5, 1, classes=classes)
    passes = [counted(batches.epoch_batches(number)) for number in range(20)]
    for drawn in passes:
        assert Counter(classes[index] for index in drawn.elements()) == {"a": 30, "b": 30, "c": 30, "d": 30}
        # The rest of 30 / 21 and 30 / 13 is drawn without replacement: nobody stands there twice more than another.
        times = {name: {drawn[i] for i, own in enumerate(classes) if own == name} for name in "abcd"}
        assert times == {"a": {1}, "b": {1, 2}, "c": {2, 3}, "d": {30}}
    assert passes[0] != passes[1]
    assert len({index for drawn in passes for index, count in drawn.items() if count > 1 and index >= 30}) == 35
    again = LengthBatchSampler([1.0] * len(classes), 5, 1, classes=classes)
    assert [counted(again.epoch_batches(number)) for number in range(20)] == passes


def test_a_recording_that_is_repeated_is_another_one_each_time():
    """The number that comes with it says how it is augmented, whoever of two processes gets it."""
    classes = ["a", "a", "a", "b"]
    alone = list(LengthBatchSampler([1.0] * 4, 2, 12, seed=1, classes=classes))
    assert sorted(number for batch in alone for index, number in batch if index == 3) == list(range(12))
    shared = [
        list(LengthBatchSampler([1.0] * 4, 2, 6, seed=1, rank=r, world_size=2, classes=classes)) for r in range(2)
    ]
    assert [batch for step in zip(*shared, strict=True) for batch in step] == alone


# ------------------------------------------------------------------------------------------------- SpecAugment


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    probability=st.floats(0, 1),
    span=st.integers(1, 80),
    least=st.integers(0, 9),
)
def test_spans_lie_inside_have_their_length_and_leave_something(lengths, probability, span, least):
    size = max(lengths)
    mask = draw_spans(torch.tensor(lengths), size, probability, span, least)
    assert mask.shape == (len(lengths), size)
    for row, length in zip(mask, lengths, strict=True):
        assert not row[length:].any()
        assert not row[:length].all()
        shortest = min(span, max(1, length // 2))
        run = 0
        for masked in [*row.tolist(), False]:
            assert masked or run == 0 or run >= shortest
            run = run + 1 if masked else 0


@pytest.mark.parametrize("length", [7, 23, 400])
def test_short_recordings_are_masked_as_much_as_long_ones(length):
    torch.manual_seed(0)
    mask = draw_spans(torch.full((4000,), length), length, 0.2, 10, 0)
    # Spans overlap: the share is somewhat below 0.2.
    assert 0.13 < mask.float().mean() < 0.21


@pytest.mark.parametrize(
    ("length", "probability", "span", "least"),
    [
        (75, 0.05, 10, 2),
        (75, 0.05, 10, 0),
        (24, 0.1, 5, 2),
        (20, 0.3, 10, 3),  # two spans fit
        (31, 0.05, 10, 7),  # three fit
        (149, 0.65, 10, 2),
        (1024, 0.25, 64, 0),
        (53, 1.0, 3, 1),
    ],
)
def test_a_recording_in_a_batch_is_masked_as_much_as_by_stock_alone(length, probability, span, least):
    draws = 3000
    torch.manual_seed(0)
    np.random.seed(0)  # stock's generator
    lengths = torch.tensor([length, 2 * length] * draws)
    ours = draw_spans(lengths, 2 * length, probability, span, least)[::2, :length].numpy()
    theirs = [_compute_mask_indices((1, length), probability, span, min_masks=least)[0] for _ in range(draws)]
    ours, theirs = ours.mean(1), np.mean(theirs, 1)
    # A row that is masked whole keeps a span here: one in 55 of 20 places with two spans of 10, or 0.9 % of the share.
    whole = span / length * (theirs == 1).mean()
    error = math.sqrt((ours.var() + theirs.var()) / draws)
    assert abs(ours.mean() - (theirs.mean() - whole)) < 4 * error + 1e-9


def test_short_recordings_get_the_minimum_number_of_masked_spans():
    lengths = torch.tensor([0, 1, 2, 3, 5, 75])
    # Of one place each: as many as are masked. A recording keeps one place at least.
    assert draw_spans(lengths, 75, 0.0, 1, 2).sum(1).tolist() == [0, 0, 1, 2, 2, 2]
    assert draw_spans(lengths, 75, 0.0, 1, 4).sum(1).tolist() == [0, 0, 1, 2, 4, 4]
    assert not draw_spans(lengths, 75, 0.0, 1, 0).any()
    for masked in draw_spans(torch.full((200,), 75), 75, 0.0, 10, 2).sum(1).tolist():
        assert 11 <= masked <= 20  # two spans of 10 that start at different places


def test_no_value_is_read_back_while_spans_are_drawn():
    """On a GPU that would wait for all that was launched before."""
    with FakeTensorMode():  # tensors without values: reading one raises
        lengths = torch.full((3,), 40)
        assert draw_spans(lengths, 50, 0.5, 10, 2).shape == (3, 50)
        with pytest.raises(DataDependentOutputException):
            int(lengths.max())


@pytest.mark.parametrize("least", [0, 2])
def test_masking_takes_the_minimum_of_the_config(family, least):
    changes = {"mask_time_prob": 1e-9, "mask_time_length": 1, "mask_time_min_masks": least}
    changes |= {"mask_feature_prob": 1e-9, "mask_feature_length": 1, "mask_feature_min_masks": least + 1}
    model = tiny_model(family, **changes).train()
    patch_spec_augment(model)
    with torch.no_grad():
        model.masked_spec_embed.fill_(2.0)
    found = model._mask_hidden_states(torch.ones(3, 11, 24))
    assert (found.amax(2) == 2).sum(1).tolist() == [least] * 3
    assert (found == 0).all(1).sum(1).tolist() == [least + 1] * 3
    model.config.mask_time_prob = model.config.mask_feature_prob = 0.0
    assert torch.equal(model._mask_hidden_states(torch.ones(3, 11, 24)), torch.ones(3, 11, 24))


def of_silent_checkpoint(regularization, config=None):
    """A model that is built from a checkpoint whose config masks nothing, though it has probabilities."""
    stock = tiny_model("wav2vec2-layer", "ForCTC", apply_spec_augment=False, mask_time_prob=0.5)
    checkpoint = None if config else Checkpoint(stock, "here", Path(), (), (), 16_000, True, 1e-7, "said")
    recipe = Recipe(
        task=CtcOptions(),
        data=DataOptions(train="x"),
        checkpoint=None if config else "here",
        config=config or {},
        regularization=regularization,
    )
    return build_model(
        recipe, Ctc(from_texts(["ab"], unit="characters", case="lower", remove_characters="")), checkpoint
    )


def test_a_config_that_masks_nothing_does_so_until_the_recipe_asks():
    for config in (None, {"model_type": "wav2vec2", **SIZES_OF_ENCODER, "apply_spec_augment": False}):
        model = of_silent_checkpoint(RegularizationOptions(mask_time_length=3), config)
        assert not model.config.apply_spec_augment
        assert not model.wav2vec2.masked_spec_embed.requires_grad  # DistributedDataParallel would wait for it
        for asked in ({"mask_time_prob": 0.2}, {"mask_feature_prob": 0.2}):
            model = of_silent_checkpoint(RegularizationOptions(**asked), config)
            assert model.config.apply_spec_augment
            assert model.wav2vec2.masked_spec_embed.requires_grad
        model = of_silent_checkpoint(RegularizationOptions(mask_time_prob=0.0, mask_feature_prob=0.2), config)
        assert model.config.apply_spec_augment
        assert not model.wav2vec2.masked_spec_embed.requires_grad


def test_masking_takes_the_place_of_stocks_and_gives_it_back(family):
    model = tiny_model(family, "ForCTC", mask_time_prob=0.5, mask_time_length=10, mask_feature_prob=0.5)
    model.config.mask_feature_length = 64  # wider than the model: stock refuses
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 0.0  # a Conformer's statistics would move
    stock = model.base_model._mask_hidden_states
    patch_spec_augment(model)
    wave = torch.randn(2, 2000)  # 5 frames, shorter than a span
    with torch.no_grad():
        before = model.eval()(wave).logits
        assert torch.isfinite(model.train()(wave).logits).all()
        assert not torch.equal(model(wave).logits, before)
        restore_spec_augment(model)
        assert model.base_model._mask_hidden_states == stock
        assert torch.equal(model.eval()(wave).logits, before)


# --------------------------------------------------------------------------------------------------- layerdrop


@pytest.mark.parametrize("keep", [True, False])
def test_dropped_blocks_do_nothing_and_leave_gradients_where_asked(norm_style, keep):
    model = replace_attention(tiny_model(norm_style, "ForCTC", layerdrop=1.0)).train()
    patch_layerdrop(model, keep_gradients=keep)
    model(torch.randn(2, 4000)).logits.sum().backward()
    for block in model.wav2vec2.encoder.layers:
        for parameter in block.parameters():
            assert (parameter.grad is None) != keep
            assert parameter.grad is None or not parameter.grad.any()
    assert model.config.layerdrop == 1.0


def test_layerdrop_is_off_in_evaluation_and_can_be_taken_away(norm_style):
    model = tiny_model(norm_style, "ForCTC", layerdrop=0.5)
    wave = torch.randn(2, 4000)
    with torch.no_grad():
        before = model(wave).logits
        patch_layerdrop(model, keep_gradients=True)
        assert torch.equal(model(wave).logits, before)
        torch.manual_seed(0)
        trained = {round(model.train()(wave).logits.sum().item(), 3) for _ in range(12)}
        assert len(trained) > 1
        restore_layerdrop(model)
        assert torch.equal(model.eval()(wave).logits, before)
    assert model.wav2vec2.encoder.config is model.config


# -------------------------------------------------------------------------------------------------- parameters


def rates(options):
    model = tiny_model("wav2vec2-group", "ForCTC")
    groups = parameter_groups(model, options)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_rates_decay_from_the_head_down():
    found = rates(OptimizerOptions(lr=1.0, layer_decay=0.5, weight_decay=0.1))
    assert found["lm_head.weight"] == (1.0, 0.1)
    assert found["lm_head.bias"] == (1.0, 0.0)
    for block, rate in enumerate((0.25, 0.5, 1.0)):
        assert found[f"wav2vec2.encoder.layers.{block}.attention.q_proj.weight"] == (rate, 0.1)
    assert found["wav2vec2.feature_projection.projection.weight"][0] == 0.125


def test_factors_change_what_their_pattern_names():
    found = rates(
        OptimizerOptions(
            lr=1.0,
            weight_decay=0.1,
            factors=[Factor(pattern=r"lm_head", lr=10), Factor(pattern=r"\.weight$", weight_decay=0.0)],
        )
    )
    assert found["lm_head.weight"] == (10.0, 0.0)
    assert found["lm_head.bias"] == (10.0, 0.0)
    assert found["wav2vec2.encoder.layer_norm.bias"] == (1.0, 0.0)
    with pytest.raises(ValueError, match="matches nothing_like_it"):
        rates(OptimizerOptions(factors=[Factor(pattern="nothing_like_it")]))


# -------------------------------------------------------------------------------------------------- vocabulary

texts = st.text("abcxyz éß'", max_size=30)


@given(st.lists(texts, min_size=1, max_size=8), st.sampled_from(["characters", "words"]))
def test_texts_come_back_from_their_numbers_by_stocks_tokenizer(said, unit):
    if not any(text.strip() for text in said):
        return
    vocabulary = from_texts(said, unit=unit, case="auto", remove_characters="")
    tokenizer = Ctc(vocabulary).tokenizer
    for text in said:
        wanted = vocabulary.normalize(text)
        blank = vocabulary.symbols[vocabulary.blank]
        path = [n for number in vocabulary.encode(wanted) for n in (number, number, blank)]
        assert tokenizer.decode(path) == wanted


def test_texts_are_brought_into_one_form():
    vocabulary = from_texts(["Hello,  WORLD!", "cafe\u0301"], unit="characters", case="auto", remove_characters="[,!]")
    assert vocabulary.normalize(" Hello,World! ") == "hello world"
    assert vocabulary.normalize("CAFÉ") == "café"
    assert vocabulary.symbols["é"] > 4


def test_a_checkpoints_vocabulary_says_the_case():
    for text, case in (("AB C", "upper"), ("ab c", "lower"), ("aB", "keep"), ("北京", "keep")):
        head = from_texts([text], unit="characters", case="keep", remove_characters="").head
        assert from_head(head).normalizer.case == head.case == case


def test_symbols_outside_the_vocabulary_are_counted():
    rows = [Row("a", Path("a"), text="ab"), Row("b", Path("b"), text="äbä")]
    letters = Ctc(from_texts(["ab"], unit="characters", case="lower", remove_characters=""))
    with pytest.raises(
        DataError, match=r"'ä' × 2.*task\.remove_characters.*task\.out_of_vocabulary=drop.*task\.vocabulary=data"
    ):
        given_vocabulary(letters, rows, out_of_vocabulary="error")
    task = given_vocabulary(letters, rows, out_of_vocabulary="drop")
    assert task.unusable_reason(rows[0], 99) is None
    assert "outside the vocabulary: ä" in task.unusable_reason(rows[1], 99)


def given_vocabulary(letters, rows, out_of_vocabulary):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        letters.tokenizer.save_pretrained(folder)
        return Ctc.from_data(
            CtcOptions(vocabulary=f"{folder}/vocab.json", out_of_vocabulary=out_of_vocabulary), rows, None
        )


def test_a_text_longer_than_its_frames_is_an_obstacle():
    task = Ctc(from_texts(["aab"], unit="characters", case="lower", remove_characters=""))
    row = Row("a", Path("a"), text="aab")
    assert task.unusable_reason(row, 4) is None  # between two equal symbols stands a blank
    assert "4 symbols for 3 frames" in task.unusable_reason(row, 3)


def test_the_loss_of_a_recording_is_stocks(norm_style):
    model = tiny_model(norm_style, "ForCTC", ctc_loss_reduction="mean", ctc_zero_infinity=True, pad_token_id=0)
    task = Ctc(from_texts(["abcdef"], unit="characters", case="lower", remove_characters=""))
    waves, labels = torch.randn(3, 6000), torch.tensor([[5, 6, 7], [6, 6, -100], [-100, -100, -100]])
    with torch.no_grad():
        theirs = model(waves, labels=labels)
    frames = torch.full((3,), theirs.logits.shape[1])
    ours = task.losses(theirs.logits, labels, frames)
    assert ours.mean().item() == pytest.approx(theirs.loss.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------ augmentation


def test_an_augmentation_is_the_same_for_the_same_numbers():
    options = AugmentationOptions(speed=[0.9, 1.1], noise=1.0, silence=0.1)
    wave = torch.sin(torch.arange(16_000) / 20)
    change = Augmentation(options, 16_000)
    first = change.apply(wave, (0, 1, 2))
    assert torch.equal(change.apply(wave, (0, 1, 2)), first)
    others = [change.apply(wave, (0, 1, n)) for n in range(3, 9)]
    assert len({len(other) for other in [first, *others]}) > 2
    assert torch.equal(Augmentation(AugmentationOptions(), 16_000).apply(wave, (0,)), wave)


def test_noise_is_as_far_below_as_it_says():
    wave = torch.sin(torch.arange(160_000) / 20)
    for noises in ((), [lambda: torch.randn(5000) * 7]):
        change = Augmentation(AugmentationOptions(noise=1.0, snr=[20, 20]), 16_000, noises)
        noise = change.apply(wave, (1,)) - wave
        assert 20 * torch.log10(wave.norm() / noise.norm()).item() == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("wrong", [{"speed": []}, {"speed": [9.0]}, {"noise": 2.0}, {"snr": [3.0]}, {"silence": -1}])
def test_an_invalid_augmentation_is_reported(wrong):
    with pytest.raises(ValueError, match=f"augmentation.{next(iter(wrong))}"):
        Augmentation(AugmentationOptions(**wrong), 16_000)


# ----------------------------------------------------------------------------------------------------- metrics


def test_error_rates_count_over_all_recordings():
    found = transcription_metrics(["a b c", "d", ""], ["a x c", "d", "noise heard"])
    assert found["wer"] == pytest.approx(3 / 4)  # one substitution, two words where nothing was said
    assert found["exact"] == pytest.approx(1 / 3)
    assert transcription_metrics(["", ""], ["", "x"])["wer"] == 0.5
    assert transcription_metrics(["a"], [""]) == {"wer": 1.0, "cer": 1.0, "exact": 0.0, "empty": 1.0}


def test_macro_f1_counts_labels_alike():
    found = classification_metrics(["a"] * 8 + ["b"] * 2, ["a"] * 10)
    assert found["accuracy"] == 0.8
    assert found["error"] == pytest.approx(0.2)
    assert found["macro_f1"] == pytest.approx((16 / 18 + 0) / 2)


# ------------------------------------------------------------------------------------------------- checkpoints


def sealed(folder, number):
    path = folder / f"checkpoint-{number}"
    path.mkdir(parents=True)
    (path / "model.bin").write_bytes(bytes(1000))
    (path / "state.json").write_text("{}")
    resume.seal_checkpoint(path)
    return path


def shorten(path):
    (path / "model.bin").write_bytes(bytes(999))


def flip(path):
    (path / "model.bin").write_bytes(bytes(999) + b"\1")


def lose(path):
    (path / "state.json").unlink()


def never_sealed(path):
    (path / resume.SEAL).unlink()


@pytest.mark.parametrize("tear", [shorten, flip, lose, never_sealed])
def test_a_torn_checkpoint_is_left_out_and_the_one_before_taken(tear, tmp_path, caplog):
    before, last = sealed(tmp_path, 90), sealed(tmp_path, 100)
    assert resume.newest_checkpoint(tmp_path) == last
    tear(last)
    assert resume.newest_checkpoint(tmp_path) == before
    assert "checkpoint-100 is torn" in caplog.text
    assert not last.exists()


def test_no_checkpoint_is_none(tmp_path):
    assert resume.newest_checkpoint(tmp_path / "absent") is None


# ---------------------------------------------------------------------------------------------------- frontend


@pytest.mark.parametrize("family", ["wav2vec2-group", "wav2vec2-layer", "hubert-group", "unispeech-group"])
def test_a_batch_trains_as_its_recordings_alone(family):
    """Logits and gradients of a padded batch are those of one recording at a time; stock's group norm cannot."""
    task = Ctc(from_texts(["abcdef"], unit="characters", case="lower", remove_characters=""))
    model = replace_attention(
        tiny_model(
            family,
            "ForCTC",
            hidden_dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            activation_dropout=0.0,
        )
    )
    model.config.mask_time_prob = 0.0
    patch_frontend(model.train())
    collate = PaddingCollator(model._get_feat_extract_output_lengths)
    items = [(torch.randn(n), [5, 6]) for n in (9000, 4321, 6789)]

    def gradients(batches):
        model.zero_grad()
        losses = [losses_of(model, collate(batch), task) for batch in batches]
        torch.cat(losses).sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return torch.cat(losses).detach(), found

    batched, ours = gradients([items])
    alone, theirs = gradients([[item] for item in items])
    assert torch.allclose(batched, alone, atol=1e-4)
    for name in theirs:
        assert (ours[name] - theirs[name]).abs().max() < 1e-3 * (1 + theirs[name].abs().max()), name
    if family.endswith("group"):
        restore_frontend(model)
        assert not torch.allclose(gradients([items])[0], alone, atol=1e-3)


@pytest.fixture
def learning(norm_style):
    """A model whose convolutions learn, a batch that they were told of, and the sizes of those that stock computes."""
    model = tiny_model(norm_style).train()
    extractor = model.feature_extractor
    stock, calls = extractor.forward, []
    extractor.forward = lambda values: calls.append(len(values)) or stock(values)
    patch_frontend(model)
    waves = [torch.randn(n) for n in (9000, 4321)]
    set_lengths(model, [len(wave) for wave in waves])
    return model, torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), calls


def test_who_computes_the_convolutions_follows_what_learns(learning):
    """Ours, but where activations are computed twice; frozen ones keep nothing for a backward that will not be."""
    model, batch, calls = learning
    extractor = model.feature_extractor

    def gradients():
        extractor.zero_grad()
        extractor(batch)[:, :, :13].square().sum().backward()  # frames that both have
        return [parameter.grad.clone() for parameter in extractor.parameters()]

    ours = gradients()
    assert not calls
    assembly._checkpoint_activations(model)
    theirs = gradients()
    assert calls == [2]
    assert all(torch.allclose(a, b, atol=1e-3 * b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    extractor.requires_grad_(False)
    assert not extractor(batch).requires_grad
    extractor.requires_grad_(True)
    with torch.no_grad():
        assert not extractor(batch).requires_grad
    assert calls == [2]


def test_stock_computes_what_ours_are_not_differentiable_in(learning):
    """The waveform, half precision."""
    model, batch, calls = learning
    leaf = batch.clone().requires_grad_()
    model.feature_extractor.eval()(leaf).square().sum().backward()  # in training stock takes none either
    assert leaf.grad.any()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model.feature_extractor(batch).sum().backward()
    model.bfloat16()
    model.feature_extractor(batch.bfloat16()).sum().backward()
    assert calls == [2, 2, 2]


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["plain", "fused"])
def test_a_validation_hears_with_the_weights_as_they_are(learning, options):
    """Also after an optimizer that leaves no trace of its step in them."""
    model, batch, _ = learning
    extractor = model.feature_extractor
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=0.1, **options)

    def heard():
        with torch.no_grad():
            return extractor.eval()(batch[:1])

    before = heard()
    extractor.train()(batch).square().sum().backward()
    optimizer.step()
    after = heard()
    restore_frontend(model)
    assert torch.allclose(after, heard(), atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-2)


def test_a_model_that_trains_can_be_copied(learning):
    model, batch, _ = learning
    with torch.no_grad():
        frames = model.feature_extractor.eval()(batch)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied.feature_extractor(batch), frames)


def test_a_family_that_reads_filter_banks_is_refused_by_fine_tuning(call, tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    data = ["data=local", f"data.train={SPEECH / 'clips.csv'}", "output=out"]
    code, _, err = call("finetune", f"model.checkpoint={tmp_path / 'bert'}", *data)
    assert code == 2
    assert "reads filter banks" in err
