"""MMS: the adapters of a language, loaded, used and trained, as stock transformers does it."""

import json
import pickle

import pytest
import torch
from conftest import SIZES, SPEECH, tiny_model
from safetensors.torch import load_file, save_file

from w2v_attn import load_encoder, read_audio, replace_attention
from w2v_attn.checkpoints import adapters, hub
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.export import export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.checkpoints.tokenizers import read_tokenizer
from w2v_attn.training import finetuning
from w2v_attn.training.options import CtcOptions, DataOptions, LoraOptions, OptimizerOptions, Recipe, TrainingOptions
from w2v_attn.transcription.load_recognizer import load_recognizer

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]
# “sch” is long: a tokenizer keeps such symbols apart, and must not take it for English.
SYMBOLS = {"eng": [*SPECIAL, *"abcdefghilmnoprstuvwy"], "deu": [*SPECIAL, *"abcdefgh", "sch", *"iklmnoprstuvwzäöüß"]}
CLIPS = str(SPEECH / "clips.csv")


def scale(model, seed):
    """The adapters and the head of a language of their own, large enough to be heard."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.adapter_parameters(model).values():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    """A folder with the files of facebook/mms-1b-all: English in the weights, the adapters beside them."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    folder = tmp_path_factory.mktemp("mms")
    for number, language in enumerate(["deu", "eng"]):
        changes = {"adapter_attn_dim": 8, "vocab_size": len(SYMBOLS[language]), "pad_token_id": 0}
        model = scale(tiny_model("wav2vec2-layer", "ForCTC", **changes), number)
        save_file({n: p.detach() for n, p in model._get_adapters().items()}, folder / f"adapter.{language}.safetensors")
    model.save_pretrained(folder)
    torch.save(load_file(folder / "adapter.deu.safetensors"), folder / "adapter.nds.bin")
    vocabulary = {name: {symbol: n for n, symbol in enumerate(symbols)} for name, symbols in SYMBOLS.items()}
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "nds": vocabulary["deu"]}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="deu")
    tokenizer.set_target_lang("eng")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=True), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def changeable(mms, tmp_path):
    """The same, to be damaged."""
    import shutil

    return shutil.copytree(mms, tmp_path / "mms")


def stock(folder, language, dtype=torch.float32):
    """Stock's model and processor of a language, as the documentation of MMS says."""
    from transformers import AutoProcessor, Wav2Vec2ForCTC

    named = {} if language is None else {"target_lang": language}
    model = Wav2Vec2ForCTC.from_pretrained(folder, **named, ignore_mismatched_sizes=True, dtype=dtype)
    processor = AutoProcessor.from_pretrained(folder, **named)
    return model.eval(), processor


@torch.no_grad()
def stock_logits(folder, language, wave):
    model, processor = stock(folder, language)
    return model(processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values).logits[0]


# ------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("language", ["eng", "deu", "nds"])
def test_a_language_is_stocks_logits_and_stocks_text(mms, language, speech):
    recognizer = load_recognizer(mms, language=language)
    assert recognizer.checkpoint.language == language
    assert recognizer.config.vocab_size == recognizer.model.lm_head.out_features
    _, processor = stock(mms, language)
    for wave in speech:
        theirs = stock_logits(mms, language, wave)
        ours = recognizer.log_probabilities(wave)
        assert ours.shape[1] == len(SYMBOLS["eng" if language == "eng" else "deu"])
        torch.testing.assert_close(ours, theirs.log_softmax(-1), rtol=0, atol=1e-4)
        assert recognizer.recognize(wave).text == processor.decode(theirs.argmax(-1))


def test_languages_differ(mms, speech):
    eng, deu = (load_encoder(mms, language=language).extract(speech[:1])[0]["final"] for language in ("eng", "deu"))
    assert (eng - deu).norm() > 0.1 * eng.norm()


def test_without_a_language_the_weights_speak(mms, speech):
    whole = load_recognizer(mms)
    assert whole.checkpoint.language == "eng"
    torch.testing.assert_close(
        whole.log_probabilities(speech[0]), stock_logits(mms, None, speech[0]).log_softmax(-1), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("saved", ["deu", "eng"])
def test_a_long_symbol_of_another_language_is_not_taken_for_a_letter(changeable, saved):
    """The number of “sch” in German is that of a letter in English."""
    read_tokenizer(changeable, saved).save_pretrained(changeable)
    number = SYMBOLS["deu"].index("sch")
    for language, expected in (("deu", "sch"), ("eng", SYMBOLS["eng"][number])):
        tokenizer = read_tokenizer(changeable, language)
        assert tokenizer.decode([number]) == expected
        assert tokenizer.get_vocab() == {symbol: n for n, symbol in enumerate(SYMBOLS[language])}


# ------------------------------------------------------------------------------------------------------ features


@pytest.mark.parametrize("language", ["eng", "deu"])
def test_every_layer_is_stocks_on_that_recording_alone(mms, language, speech):
    encoder = load_encoder(mms, language=language)
    assert encoder.unpacked_reason is None
    model, processor = stock(mms, language)
    for wave, ours in zip(speech, encoder.extract(speech, "all"), strict=True):
        values = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            theirs = model.wav2vec2(values, output_hidden_states=True)
        for number, hidden in enumerate(theirs.hidden_states[1:], 1):
            torch.testing.assert_close(ours[f"layer_{number:02d}"], hidden[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours["final"], theirs.last_hidden_state[0], rtol=0, atol=1e-4)


def test_bfloat16_is_as_near_as_stocks(mms, speech):
    encoder, exact = load_encoder(mms, language="deu", dtype="bfloat16"), load_encoder(mms, language="deu")
    model, _ = stock(mms, "deu", torch.bfloat16)
    ours, theirs = 0.0, 0.0
    for wave in speech:
        truth = exact.extract([wave])[0]["final"]
        with torch.no_grad():
            other = model.wav2vec2(exact.prepare(wave)[None].bfloat16()).last_hidden_state[0]
        ours += ((encoder.extract([wave])[0]["final"].float() - truth).norm() / truth.norm()).item()
        theirs += ((other.float() - truth).norm() / truth.norm()).item()
    assert ours <= 1.1 * theirs


def test_another_adapter_in_the_same_encoder_is_followed(mms, speech):
    encoder = load_encoder(mms, language="eng")
    before = encoder.extract(speech[:1])[0]["final"]
    adapters.load_adapter(encoder.model, mms / "adapter.deu.safetensors")
    after = encoder.extract(speech[:1])[0]["final"]
    assert not torch.equal(before, after)
    expected = load_encoder(mms, language="deu").extract(speech[:1])[0]["final"]
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)


def test_gradients_of_adapters_are_stocks_without_padding(mms, speech):
    (ours, processor), (theirs, _) = stock(mms, "deu"), stock(mms, "deu")
    replace_attention(ours, unpad=True)
    batch = processor([wave.numpy() for wave in speech], sampling_rate=16_000, return_tensors="pt", padding=True)
    labels = torch.randint(5, 20, (len(speech), 4), generator=torch.Generator().manual_seed(0))
    for model in (ours, theirs):
        model.freeze_base_model()
        for parameter in adapters.adapter_parameters(model).values():
            parameter.requires_grad_(True)
        model.train()
        model.config.layerdrop = model.config.mask_time_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for name in ("attention_dropout", "activation_dropout"):
            setattr(model.config, name, 0.0)
        for block in model.wav2vec2.encoder.layers:
            block.attention.dropout = 0.0
        model(**batch, labels=labels).loss.backward()
    wanted = adapters.adapter_parameters(theirs)
    assert len(wanted) == 6 * SIZES["num_hidden_layers"] + 2
    for name, parameter in adapters.adapter_parameters(ours).items():
        theirs_grad = wanted[name].grad
        torch.testing.assert_close(parameter.grad, theirs_grad, rtol=1e-3, atol=1e-4 * theirs_grad.abs().max().item())
    assert all(p.grad is None for n, p in ours.named_parameters() if n not in wanted)


# ------------------------------------------------------------------------------------------------------ refusals


def test_a_language_that_is_not_there_is_reported_with_those_that_are(mms):
    with pytest.raises(CheckpointError, match=r"no adapter for the language “dew”. Did you mean deu\?") as caught:
        load_encoder(mms, language="dew")
    assert "There are 3: deu, eng, nds" in str(caught.value)
    with pytest.raises(CheckpointError, match="no adapter for the language"):
        load_encoder(mms, language="../eng")


def test_a_language_of_a_checkpoint_without_adapters_is_refused(layer_checkpoint):
    with pytest.raises(CheckpointError, match=r"has no adapters for languages .* leave model.language out"):
        load_encoder(layer_checkpoint, language="eng")


def test_a_language_of_another_form_is_refused(group_checkpoint, tmp_path):
    export_checkpoint(load_checkpoint(group_checkpoint), tmp_path / "copy", format="torchaudio")
    with pytest.raises(CheckpointError, match=r"torchaudio.* format, which has no adapters"):
        load_encoder(tmp_path / "copy", language="eng")


def damage(file, how):
    tensors = load_file(file)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        if how == "missing":
            del tensors["wav2vec2.encoder.layers.1.adapter_layer.linear_1.bias"]
        elif how == "left over":
            tensors["wav2vec2.encoder.layers.9.adapter_layer.linear_1.bias"] = torch.zeros(8)
        elif how == "mis-shaped":
            tensors["wav2vec2.encoder.layers.1.adapter_layer.linear_1.bias"] = torch.zeros(5)
        elif how == "half a head":
            tensors["lm_head.bias"] = torch.zeros(5)
        save_file(tensors, file)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut", "damaged or cut short"),
        ("empty", "damaged or cut short"),
        ("missing", r"missing: wav2vec2\.encoder\.layers\.1\.adapter_layer\.linear_1\.bias"),
        ("left over", r"unexpected: wav2vec2\.encoder\.layers\.9"),
        ("mis-shaped", r"of shape \[5\] instead of \[8\]: wav2vec2\.encoder\.layers\.1"),
        ("half a head", rf"of shape \[5\] instead of \[{len(SYMBOLS['deu'])}\]: lm_head\.bias"),
    ],
)
def test_a_damaged_adapter_is_named(changeable, how, says):
    damage(changeable / "adapter.deu.safetensors", how)
    with pytest.raises(CheckpointError, match=f"(?s)adapter.deu.safetensors.*{says}"):
        load_recognizer(changeable, language="deu")


def test_a_pickled_adapter_that_would_run_code_is_refused_and_does_not_run(changeable, tmp_path):
    class RunsCode:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "it-ran"),)

    for content in (pickle.dumps(RunsCode(), 2), b"", b"PK\x03\x04", pickle.dumps({"a": 3}, 2)):
        (changeable / "adapter.nds.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"adapter\.nds\.bin"):
            load_encoder(changeable, language="nds")
    assert not (tmp_path / "it-ran").exists()


def test_a_vocabulary_that_lacks_the_language_is_reported(changeable):
    vocabulary = json.loads((changeable / "vocab.json").read_text())
    (changeable / "vocab.json").write_text(json.dumps({"eng": vocabulary["eng"]}))
    with pytest.raises(CheckpointError, match="no vocabulary for the language “deu”, only for eng"):
        load_recognizer(changeable, language="deu")
    (changeable / "vocab.json").write_text(json.dumps(vocabulary["eng"]))
    with pytest.raises(CheckpointError, match="one vocabulary, which does not name its language"):
        load_recognizer(changeable, language="deu")
    (changeable / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json cannot be read"):
        load_recognizer(changeable, language="deu")


def test_several_vocabularies_and_no_language_are_reported(changeable):
    file = changeable / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_lang": None}))
    with pytest.raises(CheckpointError, match=r"name one with model\.language=, of deu, eng, nds"):
        load_recognizer(changeable)
    assert load_checkpoint(changeable).language is None


# ----------------------------------------------------------------------------------------------------- hub, copy


def test_of_a_hub_id_the_adapter_is_fetched_from_the_same_commit(mms, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: [p.name for p in mms.iterdir()])

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        return str(mms / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    snapshot = mms.parent / "0123abc"
    snapshot.mkdir(exist_ok=True)
    for path in mms.iterdir():
        if not path.name.startswith("adapter.") and not (snapshot / path.name).exists():
            (snapshot / path.name).symlink_to(path)
    assert load_checkpoint("facebook/mms", language="deu").language == "deu"
    load_checkpoint("facebook/mms", language="nds")
    assert asked == [
        ("facebook/mms", "adapter.deu.safetensors", "0123abc"),
        ("facebook/mms", "adapter.nds.bin", "0123abc"),
    ]
    with pytest.raises(CheckpointError, match="There are 3: deu, eng, nds"):
        load_checkpoint("facebook/mms", language="xyz")
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    with pytest.raises(CheckpointError, match="no connection to the hub"):
        load_checkpoint("facebook/mms", language="deu")


def test_a_copy_in_a_language_speaks_it_in_stock_and_keeps_the_others(mms, tmp_path, speech):
    from transformers import AutoProcessor, Wav2Vec2ForCTC

    export_checkpoint(load_checkpoint(mms, language="deu", with_head=True), tmp_path / "copy")
    model, processor = (kind.from_pretrained(tmp_path / "copy") for kind in (Wav2Vec2ForCTC, AutoProcessor))
    values = processor(speech[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        logits = model.eval()(values).logits[0]
    torch.testing.assert_close(logits, stock_logits(mms, "deu", speech[0]), rtol=0, atol=1e-5)
    assert processor.decode(logits.argmax(-1)) == load_recognizer(mms, language="deu").recognize(speech[0]).text
    again = stock_logits(tmp_path / "copy", "eng", speech[0])
    torch.testing.assert_close(again, stock_logits(mms, "eng", speech[0]), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ training


def recipe(mms, language, *, task=None, training=None, **changes):
    options = {"max_steps": 3, "batch_seconds": 6, "eval_steps": 3, "freeze": "all_but_adapters"}
    return Recipe(
        task=task or CtcOptions(vocabulary="data"),
        data=DataOptions(train=CLIPS),
        checkpoint=str(mms),
        language=language,
        optimizer=OptimizerOptions(lr=1e-3),
        training=TrainingOptions(**{**options, "new_adapters": True, **(training or {})}),
        **changes,
    )


def changed(before, after):
    """NameTable of weights that are not the same, and of those that were not there."""
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


def test_a_new_language_trains_its_adapters_and_head_alone_and_stock_takes_them(mms, tmp_path, speech):
    out = tmp_path / "tur"
    finetuning.finetune(recipe(mms, "tur"), out)
    before, after = load_file(mms / "model.safetensors"), load_file(out / "model.safetensors")
    own = load_file(out / "adapter.tur.safetensors")
    assert changed(before, after) == set(own) == set(load_file(mms / "adapter.deu.safetensors"))
    assert all(torch.equal(own[name], after[name]) for name in own)
    vocabulary = json.loads((out / "vocab.json").read_text())
    assert set(vocabulary) == {"tur"}
    assert len(vocabulary["tur"]) == len(own["lm_head.bias"]) != len(SYMBOLS["eng"])
    ours = load_recognizer(out)
    assert ours.checkpoint.language == "tur"
    log_probabilities = ours.log_probabilities(speech[0])
    for language in (None, "tur"):
        theirs = stock_logits(out, language, speech[0]).log_softmax(-1)
        torch.testing.assert_close(log_probabilities, theirs, rtol=0, atol=1e-4)
    # And into the model that training started from.
    base, _ = stock(mms, "eng")
    _, processor = stock(out, None)
    base.config._name_or_path = str(out)
    base.load_adapter("tur")
    values = processor(speech[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        theirs = base.eval()(values).logits[0].log_softmax(-1)
    torch.testing.assert_close(log_probabilities, theirs, rtol=0, atol=1e-4)
    assert 'model.load_adapter("tur")' in (out / "README.md").read_text()


def test_the_adapters_of_a_language_that_is_there_are_trained_further(mms, tmp_path):
    out = tmp_path / "eng"
    task = CtcOptions(out_of_vocabulary="drop")
    training = {"new_adapters": False}
    finetuning.finetune(recipe(mms, "deu", task=task, training={**training, "max_steps": 1}), out)
    before, after = (load_file(folder / "adapter.deu.safetensors") for folder in (mms, out))
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    moved = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0 < moved < 0.01  # one update of Adam at a rate of 1e-3
    assert json.loads((out / "vocab.json").read_text()) == {"deu": {s: n for n, s in enumerate(SYMBOLS["deu"])}}


def test_new_adapters_hardly_change_what_passes(mms, speech):
    encoder, bare = load_encoder(mms, language="deu"), load_encoder(mms, language="deu")
    adapters.reset_adapters(encoder.model)
    for block in bare.model.encoder.layers:
        block.adapter_layer = None
    ours, theirs, old = (
        model.extract(speech[:1])[0]["final"] for model in (encoder, bare, load_encoder(mms, language="deu"))
    )
    assert (ours - theirs).norm() < 0.05 * theirs.norm() < (old - theirs).norm()


@pytest.mark.parametrize(
    ("language", "training", "says"),
    [
        (None, {}, "name it, model.language=tur"),
        ("a b", {}, "a language code consists of letters"),
        ("tur", {"freeze": "encoder"}, "training.new_adapters must be trained"),
        ("tur", {"freeze": "feature_encoder", "lora": LoraOptions(rank=2)}, "training.new_adapters must be trained"),
        ("deu", {"new_adapters": False, "lora": LoraOptions(rank=2)}, "cannot be combined"),
        ("tur", {"new_adapters": False}, "no adapter for the language “tur”"),
    ],
)
def test_an_invalid_recipe_for_adapters_is_reported(mms, language, training, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        finetuning.finetune(recipe(mms, language, training=training), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_adapters_is_reported(layer_checkpoint, tmp_path):
    with pytest.raises(ValueError, match="whose blocks have adapters"):
        finetuning.finetune(recipe(layer_checkpoint, "tur"), tmp_path / "out")
    asked = recipe(layer_checkpoint, None, training={"new_adapters": False})
    with pytest.raises(ValueError, match=r"training\.freeze=all_but_adapters needs a checkpoint"):
        finetuning.finetune(asked, tmp_path / "out")


# ------------------------------------------------------------------------------------------------------ commands


def test_the_commands_take_a_language(call, mms, tmp_path, clips):
    model = ["model=mms", f"model.checkpoint={mms}", "model.language=deu"]
    code, shown, _ = call("load", *model)
    assert code == 0
    assert "deu, eng, nds" in shown
    assert "8 channels in each block" in shown
    clip = clips[3][0]
    assert call("extract", *model, f"audio={clip}", "output=features")[0] == 0
    ours = load_file(next((tmp_path / "features").rglob("*.safetensors")))["final"]
    expected = load_encoder(mms, language="deu").extract([read_audio(clip)])[0]["final"]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert call("transcribe", *model, f"audio={clip}", "output=text")[0] == 0
    said = json.loads((tmp_path / "text" / "transcripts.jsonl").read_text())["text"]
    assert said == load_recognizer(mms, language="deu").recognize(read_audio(clip)).text
    assert call("verify", *model, "dtypes=[float32]", "recordings=2", "seconds=1", "output=proof.json")[0] == 0
    assert json.loads((tmp_path / "proof.json").read_text())["language"] == "deu"
    for command in ("load", "extract", "transcribe", "evaluate", "verify"):
        code, _, err = call(command, *model[:2], "model.language=nan")
        assert code == 2
        assert "no adapter for the language “nan”" in err
