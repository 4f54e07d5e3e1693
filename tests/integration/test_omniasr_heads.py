"""Heads on OmniASR: transcription, fine-tuning and classification compute what stock computes."""

import json

import pytest
import torch
from conftest import SIZES, SPEECH, save, tiny_omniasr

from w2v_attn import load_encoder, replace_attention
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.ctc_head import derive_ctc_head
from w2v_attn.checkpoints.encoder_parts import base_encoder, count_frames, encoder_parts, model_inputs
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.checkpoints.omniasr_as_wav2vec2 import wav2vec2_config, wav2vec2_weights
from w2v_attn.training import finetuning
from w2v_attn.training.callbacks import SilentListener
from w2v_attn.training.options import (
    ClassificationOptions,
    CtcOptions,
    DataOptions,
    LoraOptions,
    OptimizerOptions,
    Recipe,
    RegularizationOptions,
    TrainingOptions,
)
from w2v_attn.training.regularization import patch_layerdrop, restore_layerdrop
from w2v_attn.training.speech_dataset import PaddingCollator
from w2v_attn.training.tasks.ctc import Ctc
from w2v_attn.training.trainer import losses_of
from w2v_attn.training.unpadded_frontend import patch_frontend, restore_frontend
from w2v_attn.training.vocabulary import from_head
from w2v_attn.transcription.load_recognizer import load_recognizer

transformers = pytest.importorskip("transformers", minversion="5.24")

CLIPS = str(SPEECH / "clips.csv")
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}


class Losses(SilentListener):
    """Remembers losses, and asks for the end after `stop_after` updates."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.losses, self._stop_after = {}, stop_after

    def on_step(self, update, loss):
        self.losses[update] = loss

    def interrupted(self):
        return self._stop_after is not None and len(self.losses) >= self._stop_after


def omniasr_tokenizer():
    """Return a tokenizer with the special symbols of Omnilingual ASR in its rows: <s> is the blank, <pad> is not."""
    from test_piece_tokenizers import omniasr_tokenizer as make

    return make([" ", *"abcdefghijklmnopqrstuvwxyz'"])


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    """A folder of OmniASRForCTC with its processor, as transformers saves it."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "ctc", omniasr_tokenizer()
    model = tiny_omniasr("ForCTC", **NO_DROPOUT)
    model.config.vocab_size = len(tokenizer)
    model.ctc_head = torch.nn.Linear(SIZES["hidden_size"], len(tokenizer))
    with torch.no_grad():
        model.ctc_head.weight.mul_(5)  # so that the text has many letters
    model.save_pretrained(folder)
    transformers.OmniASRCTCProcessor(transformers.OmniASRFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory):
    return save(tiny_omniasr(**NO_DROPOUT), tmp_path_factory.mktemp("models") / "audio")


def recipe(checkpoint, task=None, *, data=None, training=None, **changes):
    options = {
        "task": task or CtcOptions(),
        "data": DataOptions(**{"train": CLIPS, **(data or {})}),
        "checkpoint": str(checkpoint),
        "optimizer": OptimizerOptions(lr=1e-3),
        "training": TrainingOptions(
            **{"max_steps": 4, "batch_seconds": 6, "eval_steps": 2, "freeze": "none", **(training or {})}
        ),
        **changes,
    }
    return Recipe(**options)


def stock_texts(folder, waves):
    """Return what stock transformers makes of waveforms, one at a time."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.OmniASRForCTC.from_pretrained(folder).eval()
    inputs = [processor(wave.numpy(), sampling_rate=16_000) for wave in waves]
    return [processor.decode(model.generate(**one)[0], skip_special_tokens=True) for one in inputs]


# --------------------------------------------------------------------------------------------------- transcription


def test_transcripts_are_stocks(ctc_folder, speech):
    recognizer = load_recognizer(ctc_folder)
    found = [recognizer.recognize(wave, sampling_rate=16_000) for wave in speech]
    assert [one.text for one in found] == stock_texts(ctc_folder, speech)
    assert all(len(one.text) > 10 for one in found)
    for one, wave in zip(found, speech, strict=True):
        assert one.words
        assert all(0 <= word.start < word.end <= len(wave) / 16_000 for word in one.words)
        assert " ".join(word.word for word in one.words) == " ".join(one.text.split())


def test_a_long_recording_has_the_text_of_the_packed_encoder(ctc_folder, speech, monkeypatch):
    recognizer = load_recognizer(ctc_folder)
    whole = recognizer.recognize(speech[0], sampling_rate=16_000)
    monkeypatch.setattr("w2v_attn.transcription.recognizer.MAX_MODEL_SECONDS", 0.1)
    assert recognizer.recognize(speech[0], sampling_rate=16_000).text == whole.text


def test_transcribe_and_evaluate_write_what_stock_reads(call, ctc_folder, tmp_path):
    code, _, err = call("transcribe", f"model.checkpoint={ctc_folder}", f"audio={SPEECH}", f"output={tmp_path / 'out'}")
    assert code == 0, err
    code, said, err = call("evaluate", f"model.checkpoint={ctc_folder}", f"audio={CLIPS}", f"output={tmp_path / 'ev'}")
    assert code == 0, err
    assert "wer" in said + err


def test_a_checkpoint_with_a_language_model_names_the_ctc_variant(tmp_path):
    folder = save(tiny_omniasr("ForConditionalGeneration"), tmp_path / "llm")
    with pytest.raises(CheckpointError, match=r"language model as decoder.*CTC variant.*omniasr-ctc-300m-v2"):
        load_recognizer(folder)


def test_the_search_with_a_language_model_writes_its_words(ctc_folder, speech, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder")
    from w2v_attn.transcription.beam_search import BeamSearchOptions

    lm = tmp_path / "lm.arpa"
    one = "-1.0\t<unk>\n-1.0\t<s>\t0\n-1.0\t</s>\n-0.5\tab\t0\n-0.5\tzoo\t0"
    lm.write_text(f"\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n{one}\n\n\\2-grams:\n-0.5\tab zoo\n\n\\end\\\n")
    recognizer = load_recognizer(ctc_folder, decoder=BeamSearchOptions(lm=lm))
    words = [word.word for wave in speech for word in recognizer.recognize(wave, sampling_rate=16_000).words]
    assert words
    assert set(words) <= {"ab", "zoo"}


# ------------------------------------------------------------------------------------------- the loss is stock's


@pytest.fixture(scope="module")
def batch(speech):
    """Waveforms of different lengths as stock's processor prepares them, and their texts."""
    return speech, ["a light", "open", "see"]


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_loss_and_gradients_are_stocks(ctc_folder, batch, unpad, frozen):
    waves, texts = batch
    processor = transformers.AutoProcessor.from_pretrained(ctc_folder)
    theirs = transformers.OmniASRForCTC.from_pretrained(ctc_folder).train()
    theirs.config.ctc_zero_infinity = True
    arrays = [wave.numpy() for wave in waves]
    inputs = processor(arrays, text=texts, sampling_rate=16_000, padding=True, return_tensors="pt")
    loss = theirs(**inputs).loss
    loss.backward()

    loaded = load_checkpoint(ctc_folder, with_head=True)
    head = derive_ctc_head(processor.tokenizer, rows=theirs.config.vocab_size, config_blank=0, source="stock")
    task = Ctc(from_head(head), keeps_head=True)
    ours = replace_attention(loaded.model, unpad=unpad).train()
    if frozen:
        for layer in encoder_parts(base_encoder(ours)).convolutions:
            layer.requires_grad_(False)
    patch_frontend(ours)
    items = [
        (inputs["input_values"][row, 0, : len(wave)], head.encode(text))
        for row, (wave, text) in enumerate(zip(waves, texts, strict=True))
    ]
    collated = PaddingCollator(lambda samples: count_frames(ours, samples))(items)
    assert torch.equal(collated["labels"], inputs["labels"])
    losses = losses_of(ours, collated, task)
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if frozen and "conv_layers" in name:
            assert parameter.grad is None
            continue
        gap = (parameter.grad - wanted[name].grad).abs().max()
        assert gap < 1e-4 * (1 + wanted[name].grad.abs().max()), name
    restore_frontend(ours)


def test_layerdrop_is_drawn_once_and_can_be_taken_away():
    model = replace_attention(tiny_omniasr("ForCTC", layerdrop=1.0, hidden_dropout=0.0), unpad=True).train()
    patch_layerdrop(model, keep_gradients=True)
    model(**model_inputs(model, torch.randn(2, 4000))).logits.sum().backward()
    blocks = encoder_parts(base_encoder(model)).blocks
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for block in blocks for p in block.parameters())
    restore_layerdrop(model)
    encoder = base_encoder(model)
    assert (encoder.layerdrop, encoder.config.layerdrop) == (1.0, 1.0)


# ------------------------------------------------------------------------------------------------- fine-tuning


def check_stock_reads(folder, waves):
    recognizer = load_recognizer(folder)
    ours = [recognizer.recognize(wave, sampling_rate=16_000).text for wave in waves]
    assert ours == stock_texts(folder, waves)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "OmniASRCTCProcessor"
    return processor


def test_a_pretrained_encoder_gets_a_new_vocabulary(audio_folder, speech, tmp_path):
    out, watch = tmp_path / "out", Losses()
    finetuning.finetune(recipe(audio_folder), out, watch)
    assert watch.losses[4] < watch.losses[1]
    processor = check_stock_reads(out, speech)
    config = json.loads((out / "config.json").read_text())
    assert (config["blank_token_id"], config["pad_token_id"], config["ctc_zero_infinity"]) == (0, 0, True)
    assert processor.tokenizer.convert_ids_to_tokens(0) == "<pad>"
    # The blank is the padding symbol: without skip_special_tokens the text is the same.
    path = processor.tokenizer("one two").input_ids
    assert processor.decode([row for one in path for row in (one, 0)]) == "one two"
    card = (out / "README.md").read_text()
    assert "AutoModelForCTC" in card
    assert "pipeline(" not in card


def test_the_head_of_a_checkpoint_is_kept_with_its_tokenizer(ctc_folder, speech, tmp_path):
    out = tmp_path / "out"
    finetuning.finetune(recipe(ctc_folder, training={"max_steps": 1}, optimizer=OptimizerOptions(lr=1e-9)), out)
    check_stock_reads(out, speech)
    assert stock_texts(out, speech) == stock_texts(ctc_folder, speech)
    config = json.loads((out / "config.json").read_text())
    assert (config["blank_token_id"], config["pad_token_id"]) == (0, 1)
    symbols = [json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] for folder in (out, ctc_folder)]
    assert symbols[0] == symbols[1]


@pytest.mark.slow
def test_another_vocabulary_replaces_the_head_of_a_checkpoint(ctc_folder, speech, tmp_path):
    asked = recipe(ctc_folder, CtcOptions(vocabulary="data"), training={"max_steps": 1})
    finetuning.finetune(asked, tmp_path / "out")
    processor = check_stock_reads(tmp_path / "out", speech)
    assert processor.tokenizer.pad_token_id == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == len(processor.tokenizer) != len(omniasr_tokenizer())


@pytest.mark.parametrize("with_head", [True, False])
def test_an_adapter_of_peft_is_merged_into_its_base(ctc_folder, speech, tmp_path, with_head):
    peft = pytest.importorskip("peft")
    stock = transformers.OmniASRForCTC.from_pretrained(ctc_folder).eval()
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["ctc_head"], "init_lora_weights": False}
    adapted = peft.get_peft_model(stock, peft.LoraConfig(r=2, **options)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_checkpoint(tmp_path / "adapter", base_model=ctc_folder, with_head=with_head).model
    values = speech[0][None, None]
    with torch.no_grad():
        theirs = adapted(values).logits if with_head else adapted.get_base_model().model(values).last_hidden_state
        found = ours(values)
    found = found.logits if with_head else found.last_hidden_state
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4)


def test_words_are_symbols_where_asked(audio_folder, speech, tmp_path):
    finetuning.finetune(recipe(audio_folder, CtcOptions(unit="words"), training={"max_steps": 2}), tmp_path / "out")
    processor = check_stock_reads(tmp_path / "out", speech)
    assert "three" in processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "training",
    [
        {"lora": LoraOptions(rank=2)},
        {"freeze": "feature_encoder", "gradient_checkpointing": True},
        pytest.param({"freeze": "encoder"}, marks=pytest.mark.slow),
        pytest.param({"freeze_encoder_steps": 2}, marks=pytest.mark.slow),
    ],
    ids=["lora", "convolutions frozen, checkpointing", "encoder frozen", "encoder frozen at first"],
)
def test_what_is_trained_follows_the_options(audio_folder, speech, tmp_path, training):
    asked = recipe(audio_folder, training=training, optimizer=OptimizerOptions(lr=1e-2, layer_decay=0.9))
    finetuning.finetune(asked, tmp_path / "out")
    check_stock_reads(tmp_path / "out", speech)
    before = dict(load_checkpoint(audio_folder).model.named_parameters())
    after = dict(base_encoder(load_checkpoint(tmp_path / "out", with_head=True).model).named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    convolutions = {name for name in before if "conv_layers" in name}
    if "lora" in training:
        assert changed == {name for name in before if "_proj.weight" in name}
    elif training.get("freeze") == "encoder":
        assert not changed
    elif training.get("freeze") == "feature_encoder":
        assert changed.isdisjoint(convolutions)
        assert "subsampling.projection.weight" in changed
    else:
        assert convolutions & changed


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_losses(audio_folder, tmp_path):
    dropout = RegularizationOptions(hidden_dropout=0.1, layerdrop=0.3)
    asked = recipe(audio_folder, regularization=dropout, training={"max_steps": 6})
    whole, first, second = Losses(), Losses(3), Losses()
    finetuning.finetune(asked, tmp_path / "whole", whole)
    assert finetuning.finetune(asked, tmp_path / "parts", first).interrupted
    assert not finetuning.finetune(asked, tmp_path / "parts", second).interrupted
    assert {**first.losses, **second.losses} == whole.losses
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["audio_config"]["layerdrop"] == 0.3


def test_random_weights_of_a_config_are_trained(speech, tmp_path):
    sizes = {**load_sizes(), "model_type": "omniasr_audio"}
    asked = recipe("", training={"max_steps": 2}, config=sizes)
    asked.checkpoint = None
    finetuning.finetune(asked, tmp_path / "out")
    check_stock_reads(tmp_path / "out", speech)


def load_sizes():
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim")
    names += ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
    return {name: SIZES[name] for name in names}


def test_spec_augment_is_refused_by_its_key(audio_folder, tmp_path):
    asked = recipe(audio_folder, regularization=RegularizationOptions(mask_time_prob=0.1))
    with pytest.raises(ValueError, match=r"regularization\.mask_time_prob=0\.1: omniasr_ctc has no"):
        finetuning.finetune(asked, tmp_path / "out")


# ---------------------------------------------------------------------------------------------- classification


def test_a_wav2vec2_encoder_with_the_same_weights_gives_the_same_features(audio_folder, speech):
    theirs = load_checkpoint(audio_folder).model
    ours = transformers.Wav2Vec2Model(wav2vec2_config(theirs.config)).eval()
    report = ours.load_state_dict(wav2vec2_weights(theirs), strict=False)
    assert [*report.missing_keys, *report.unexpected_keys] in ([], ["masked_spec_embed"])
    for wave in speech:
        values = (wave - wave.mean())[None]
        with torch.no_grad():
            final = ours(values).last_hidden_state
            torch.testing.assert_close(final, theirs(values[:, None]).last_hidden_state, rtol=0, atol=1e-5)


SLOW_PROBLEMS = [pytest.param(problem, marks=pytest.mark.slow) for problem in ("multi", "regression")]


@pytest.mark.parametrize("problem", ["single", *SLOW_PROBLEMS])
def test_a_classifier_has_the_features_of_the_encoder(audio_folder, speech, problem, tmp_path, caplog):
    labels = {"single": ["a", "b"], "multi": ["a;b", "b"], "regression": ["0.5", "1.25"]}[problem]
    lines = [f"{SPEECH / name},{labels[number % 2]}" for number, name in enumerate(clip_names())]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    data = {"train": str(tmp_path / "list.csv"), "root": "/"}
    out = tmp_path / "out"
    task = ClassificationOptions(problem_type=problem)
    finetuning.finetune(recipe(audio_folder, task, data=data, training={"freeze": "encoder"}), out)
    assert "transformers has no classifier on OmniASR" in caplog.text
    # The encoder was not trained: its features are those of before, with the normalization of before.
    before, after = (load_encoder(folder, device="cpu") for folder in (audio_folder, out))
    quiet = [1e-3 * wave for wave in speech]  # the epsilon decides
    for one, other in zip(before.extract(quiet), after.extract(quiet), strict=True):
        torch.testing.assert_close(one["final"], other["final"], rtol=0, atol=1e-4)
    stock = transformers.AutoModelForAudioClassification.from_pretrained(out)
    assert type(stock).__name__ == "Wav2Vec2ForSequenceClassification"
    assert json.loads((out / "preprocessor_config.json").read_text())["normalize_epsilon"] == 1e-5
    recognizer = load_recognizer(out)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(out)
    values = extractor(speech[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        theirs = stock.eval()(**values).logits[0]
    # At the level of speech stock's epsilon of 1e-7 makes no difference.
    torch.testing.assert_close(recognizer.logits(speech[0]), theirs, rtol=0, atol=1e-3)


def clip_names():
    lines = (SPEECH / "clips.csv").read_text().splitlines()[1:]
    return [line.split(",")[0] for line in lines]


@pytest.mark.slow
def test_a_fine_tuned_classifier_is_trained_further(audio_folder, tmp_path):
    lines = [f"{SPEECH / name},{'ab'[number % 2]}" for number, name in enumerate(clip_names())]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    data, task = {"train": str(tmp_path / "list.csv"), "root": "/"}, ClassificationOptions()
    dropout = RegularizationOptions(mask_time_prob=0.1)  # Wav2Vec2 has it
    finetuning.finetune(recipe(audio_folder, task, data=data, regularization=dropout), tmp_path / "one")
    done = finetuning.finetune(recipe(tmp_path / "one", task, data=data), tmp_path / "two")
    assert done.metrics["valid"]
