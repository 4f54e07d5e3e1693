"""fairseq2's checkpoints of Omnilingual ASR become OmniASR and Wav2Vec2 models that compute the same."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import LAYER_NORM, TINY, tiny_model
from fairseq2_files import PIECES, in_fairseq2, write_fairseq2, write_sentencepiece

from w2v_attn import load_encoder
from w2v_attn.checkpoints import hub
from w2v_attn.checkpoints.checkpoint_error import CheckpointError
from w2v_attn.checkpoints.convert.detect import read_raw_checkpoint
from w2v_attn.checkpoints.convert.fairseq2_checkpoint import read_fairseq2
from w2v_attn.checkpoints.convert.raw_checkpoint import make_config
from w2v_attn.checkpoints.convert.sentencepiece_model import make_tokenizer, read_sentencepiece
from w2v_attn.checkpoints.export import export_checkpoint
from w2v_attn.checkpoints.loading import load_checkpoint
from w2v_attn.transcription.load_recognizer import load_recognizer

CONTRAST = {"num_codevectors_per_group": 7, "codevector_dim": 6, "proj_codevector_dim": 5}


def pretrained(**changes):
    return tiny_model("wav2vec2-layer", "ForPreTraining", **CONTRAST, **changes)


def with_ctc(**changes):
    return tiny_model("wav2vec2-layer", "ForCTC", **changes)


def omniasr(path, *, with_head=True, dtype="float32"):
    """The OmniASR model of a file, its missing and its unexpected keys."""
    loaded = load_checkpoint(path, with_head=with_head, dtype=dtype)
    assert loaded.normalize_epsilon == 1e-5
    return loaded.model, loaded.missing, loaded.unexpected


def assert_same(ours, theirs, without=()):
    assert type(ours) is type(theirs)
    state = {name: t for name, t in theirs.state_dict().items() if not name.endswith(without)}
    assert set(ours.state_dict()) >= set(state)
    for name, tensor in state.items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.fixture
def wave():
    return torch.randn(1, 3001, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------- the two target forms


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_ctc_checkpoint_becomes_both_forms_with_the_same_logits(tmp_path, wave, wrapped):
    theirs = with_ctc()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "ctc.pt", wrapped=wrapped)
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True)
    assert_same(loaded.model, theirs, without=("masked_spec_embed",))
    assert loaded.missing == ("wav2vec2.masked_spec_embed",)
    assert loaded.unexpected == ()
    ours, missing, unexpected = omniasr(path)
    assert type(ours).__name__ == "OmniASRForCTC"
    assert missing == unexpected == ()
    with torch.no_grad():
        expected = theirs(wave).logits
        assert torch.equal(loaded.model(wave).logits, expected)
        assert (ours(wave[:, None]).logits - expected).abs().max() < 1e-5


def test_a_pretrained_checkpoint_keeps_its_quantizer_as_wav2vec2_and_names_it_as_omniasr(tmp_path, wave):
    theirs = pretrained()
    state = in_fairseq2(theirs)
    path = write_fairseq2(state, tmp_path / "w2v.pt")
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True)
    assert_same(loaded.model, theirs)
    assert loaded.missing == ()
    assert loaded.unexpected == ("quantizer.num_updates",)
    ours, missing, unexpected = omniasr(path)
    assert type(ours).__name__ == "OmniASRAudioModel"
    assert missing == ()
    heads = ("quantizer.", "final_proj.", "final_target_proj.", "masker.")
    assert set(unexpected) == {name for name in state if name.startswith(heads)}
    with torch.no_grad():
        expected = theirs.wav2vec2(wave).last_hidden_state
        assert (ours(wave[:, None]).last_hidden_state - expected).abs().max() < 1e-5


def test_the_encoder_of_a_ctc_checkpoint_leaves_its_head(tmp_path, wave):
    theirs = with_ctc()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "ctc.pt")
    ours, missing, unexpected = omniasr(path, with_head=False)
    assert (missing, set(unexpected)) == ((), {"final_proj.weight", "final_proj.bias"})
    with torch.no_grad():
        expected = theirs.wav2vec2(wave).last_hidden_state
        assert (ours(wave[:, None]).last_hidden_state - expected).abs().max() < 1e-5


def test_of_a_model_with_a_language_model_the_encoder_is_taken(tmp_path, wave):
    theirs = with_ctc()
    state = in_fairseq2(theirs)
    state |= {"final_proj.weight": torch.ones(19, 32), "encoder_proj.weight": torch.ones(32, 24)}
    state |= {f"llama_decoder.layers.{n}.self_attn.q_proj.weight": torch.ones(32, 32) for n in range(2)}
    state |= {"text_frontend.weight": torch.ones(19, 32), "lang_embeddings.weight": torch.ones(3, 32)}
    path = write_fairseq2(state, tmp_path / "omniASR-LLM-300M.pt")
    ours, missing, unexpected = omniasr(path)
    assert missing == ()
    assert "llama_decoder (2 tensors)" in unexpected
    assert read_raw_checkpoint(path).format == "fairseq2 LLM, its encoder alone"
    with torch.no_grad():
        expected = theirs.wav2vec2(wave).last_hidden_state
        assert (ours(wave[:, None]).last_hidden_state - expected).abs().max() < 1e-5
        as_wav2vec2 = load_checkpoint(path, with_head=True, as_wav2vec2=True).model
        assert torch.equal(as_wav2vec2(wave).last_hidden_state, expected)


@pytest.mark.parametrize("form", ["parametrized", "plain"])
def test_other_forms_of_the_positional_weight_give_the_same_function(tmp_path, wave, form):
    theirs = with_ctc()
    state = in_fairseq2(theirs)
    name = "encoder_frontend.pos_encoder.conv"
    norm, direction = state.pop(f"{name}.weight_g"), state.pop(f"{name}.weight_v")
    if form == "parametrized":
        state |= {f"{name}.parametrizations.weight.original{n}": t for n, t in enumerate((norm, direction))}
    else:
        state[f"{name}.weight"] = theirs.wav2vec2.encoder.pos_conv_embed.conv.weight.detach()
    path = write_fairseq2(state, tmp_path / "ctc.pt")
    with torch.no_grad():
        expected = theirs(wave).logits
        assert (omniasr(path)[0](wave[:, None]).logits - expected).abs().max() < 1e-5
        loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True).model
        assert (loaded(wave).logits - expected).abs().max() < 1e-5


def test_weights_of_half_precision_and_a_distributed_prefix_are_read(tmp_path):
    theirs = with_ctc().bfloat16()
    state = {f"module.{name}": tensor for name, tensor in in_fairseq2(theirs).items()}
    path = write_fairseq2(state, tmp_path / "ctc.pt")
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True, dtype="bfloat16")
    assert_same(loaded.model, theirs, without=("masked_spec_embed",))
    ours, _, _ = omniasr(path, dtype="bfloat16")
    weight = torch.ops.aten._weight_norm(
        *(state[f"module.encoder_frontend.pos_encoder.conv.weight_{part}"].float() for part in "vg"), 2
    )
    assert torch.equal(ours.model.audio_tower.encode_positions.conv.weight, weight.bfloat16())


def test_a_loaded_model_does_not_follow_its_file(tmp_path):
    theirs = with_ctc()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "ctc.pt")
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same(loaded.model, theirs, without=("masked_spec_embed",))


def test_the_input_is_normalized_with_the_epsilon_of_omnilingual_asr(tmp_path):
    import transformers

    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True)
    assert loaded.do_normalize
    assert "epsilon 1e-05" in loaded.normalize_source
    export_checkpoint(loaded, tmp_path / "copy", format="wav2vec2")
    assert transformers.Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "copy").normalize_epsilon == 1e-5
    assert load_checkpoint(tmp_path / "copy").normalize_epsilon == 1e-5
    for wrong in ('"small"', "true", "0", "7.5"):
        text = (tmp_path / "copy" / "preprocessor_config.json").read_text()
        (tmp_path / "copy" / "preprocessor_config.json").write_text(text.replace("1e-05", wrong))
        with pytest.raises(CheckpointError, match="normalize_epsilon between 0 and 1"):
            load_checkpoint(tmp_path / "copy")
        (tmp_path / "copy" / "preprocessor_config.json").write_text(text)


@pytest.mark.parametrize("kind", ["CTC", "W2V"])
def test_features_of_both_forms_are_stocks_on_quiet_speech(tmp_path, speech, kind):
    theirs = with_ctc() if kind == "CTC" else pretrained()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "a.pt")
    export_checkpoint(load_checkpoint(path, with_head=True, as_wav2vec2=True), tmp_path / "copy", format="wav2vec2")
    quiet = speech[0] * 0.003  # the variance is not large against epsilon
    normalized = torch.nn.functional.layer_norm(quiet, quiet.shape)
    with torch.no_grad():
        expected = theirs.wav2vec2(normalized[None]).last_hidden_state[0]
    for checkpoint in (path, tmp_path / "copy"):
        features = load_encoder(checkpoint).extract([quiet])[0]["final"]
        assert (features - expected).abs().max() < 1e-4


# ------------------------------------------------------------------------------------------ sizes and heads

# channels, blocks, feed-forward, outputs of final_proj, channels of a pre-training projection; as published.
PUBLISHED = {
    "300M": (1024, 24, 4096, 9812, 768, 317_390_592, 325_494_996),
    "1B": (1280, 48, 5120, 10_288, 1024, 965_514_752, None),
    "3B": (2048, 60, 8192, 10_288, 1024, 3_064_124_672, None),
    "7B": (2048, 128, 8192, 10_288, 1024, 6_488_487_168, None),
}


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.slow) if size == "7B" else size for size in PUBLISHED]
)
def test_published_sizes_are_recognized_and_have_as_many_parameters(size):
    import transformers

    channels, blocks, wide, outputs, projected, of_pretrained, of_ctc = PUBLISHED[size]
    config = transformers.Wav2Vec2Config(
        **LAYER_NORM,
        hidden_size=channels,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        intermediate_size=wide,
        vocab_size=outputs,
        codevector_dim=projected,
        proj_codevector_dim=projected,
    )
    for kind, count in (("ForPreTraining", of_pretrained), ("ForCTC", of_ctc)):
        with torch.device("meta"):
            state = in_fairseq2(getattr(transformers, f"Wav2Vec2{kind}")(config))
        raw = read_fairseq2(Path("omniASR.pt"), {"model": state}, as_wav2vec2=True)
        ours = make_config(raw)
        for option in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
            if option != "vocab_size" or kind == "ForCTC":
                assert getattr(ours, option) == getattr(config, option), option
        assert list(ours.conv_stride) == [5, 2, 2, 2, 2, 2, 2]
        if kind == "ForPreTraining":
            assert (ours.num_codevector_groups, ours.num_codevectors_per_group) == (2, 320)
        if count is not None:
            numbers = sum(t.numel() for name, t in state.items() if name != "quantizer.num_updates")
            assert numbers == count


def test_unknown_heads_and_strides_are_asked_for_and_read_from_model_yaml(tmp_path):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt", heads=None)
    with pytest.raises(CheckpointError, match=r"24 channels.*1024, 1280, 2048 channels.*model\.yaml"):
        read_raw_checkpoint(path)
    write_fairseq2(in_fairseq2(with_ctc()), path, heads=7)
    with pytest.raises(CheckpointError, match="7 attention heads cannot share"):
        read_raw_checkpoint(path)
    short = with_ctc(conv_dim=(17, 17), conv_kernel=(10, 4), conv_stride=(5, 4), num_feat_extract_layers=2)
    write_fairseq2(in_fairseq2(short), path)
    with pytest.raises(CheckpointError, match=r"kernels \[10, 4\].*feature_extractor_layer_descs"):
        read_raw_checkpoint(path)
    metadata = tmp_path / "model.yaml"
    metadata.write_text(
        metadata.read_text().replace(
            "    norm_order", "    feature_extractor_layer_descs: [[17, 10, 5], [17, 4, 4]]\n    norm_order"
        )
    )
    assert_same(load_checkpoint(path, with_head=True, as_wav2vec2=True).model, short, without=("masked_spec_embed",))


def test_the_folder_of_a_training_is_read_with_what_belongs_to_it(tmp_path):
    theirs = with_ctc()
    step = tmp_path / "checkpoints" / "step_20"
    shard = write_fairseq2(in_fairseq2(theirs), step / "model" / "pp_00" / "tp_00" / "sdp_00.pt", wrapped=False)
    os.replace(shard.parent / "model.yaml", tmp_path / "checkpoints" / "model.yaml")
    write_sentencepiece(tmp_path / "checkpoints" / "tokenizer.model")
    for folder in (step, step / "model", shard):
        loaded = load_checkpoint(folder, with_head=True, as_wav2vec2=True)
        assert_same(loaded.model, theirs, without=("masked_spec_embed",))
        assert (loaded.folder / "vocab.json").is_file()
    with pytest.raises(CheckpointError, match=r"1 checkpoints of a training.*step_20"):
        load_checkpoint(tmp_path / "checkpoints")
    (shard.parent / "sdp_01.pt").write_bytes(shard.read_bytes())
    with pytest.raises(CheckpointError, match="2 shards"):
        load_checkpoint(step)


def test_a_folder_and_a_hub_repository_with_one_file_are_that_file(tmp_path, monkeypatch):
    import huggingface_hub

    theirs = with_ctc()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "snapshot" / "omniASR-CTC-300M.pt")
    write_sentencepiece(path.parent / "omniASR_tokenizer.model")
    (path.parent / "README.md").write_text("a card")
    assert load_checkpoint(path.parent, with_head=True).format == "fairseq2 CTC"
    asked = []

    def download(hub_id, *, revision, allow_patterns):
        asked.extend(allow_patterns)
        return str(path.parent)

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: [file.name for file in path.parent.iterdir()]
    )
    loaded = load_checkpoint("facebook/omniASR-CTC-300M", with_head=True, as_wav2vec2=True)
    assert_same(loaded.model, theirs, without=("masked_spec_embed",))
    assert (loaded.folder / "vocab.json").is_file()
    assert asked == ["*.pt", "*.model", "*.yaml"]


# ------------------------------------------------------------------------------------------------ tokenizers


def test_the_tokenizer_is_that_of_transformers_own_conversion(tmp_path):
    from transformers.convert_slow_tokenizer import OmniASRConverter

    path = write_sentencepiece(tmp_path / "omniASR_tokenizer.model")
    assert make_tokenizer(read_sentencepiece(path)).to_str() == OmniASRConverter(str(path)).converted().to_str()


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("model_type", [1, 4])
def test_texts_are_encoded_and_decoded_as_by_sentencepiece(tmp_path, escaped, model_type):
    # The numbers that sentencepiece 0.2.3 gives; it adds a space in front of texts if it escapes spaces.
    path = write_sentencepiece(tmp_path / "a.model", escaped=escaped, model_type=model_type)
    tokenizer = make_tokenizer(read_sentencepiece(path))
    first = [4] if escaped else []
    for text, numbers, back in (
        ("ta ñe n", [6, 7, 4, 8, 5, 4, 9], "ta ñe n"),
        ("  ta   e ", [6, 7, 4, 5], "ta e"),
        ("e'n t", [5, 10, 9, 4, 6], "e'n t"),
    ):
        assert tokenizer.encode(text).ids == first + numbers
        assert tokenizer.decode(first + numbers) == back
    assert tokenizer.encode("tax'").ids == [*first, 6, 7, 3, 10]
    assert tokenizer.encode("").ids == []


def test_a_ctc_checkpoint_becomes_a_folder_that_stock_transcribes_with(tmp_path):
    import transformers

    theirs = with_ctc()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "from" / "ctc.pt")
    write_sentencepiece(path.parent / "omniASR_tokenizer.model")
    export_checkpoint(load_checkpoint(path, with_head=True, as_wav2vec2=True), tmp_path / "copy", format="wav2vec2")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "copy")
    assert_same(model, theirs, without=("masked_spec_embed",))
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "copy")
    assert processor.feature_extractor.do_normalize
    # The first output is the blank: it goes, what repeats is one.
    assert processor.tokenizer.decode([0, 6, 6, 0, 6, 5, 4, 4, 0, 8]) == "tte ñ"
    assert processor.tokenizer("e ñ").input_ids == [5, 4, 8]
    assert model.config.pad_token_id == processor.tokenizer.pad_token_id == 0


def test_the_file_and_its_folders_of_both_forms_give_the_same_text(tmp_path, speech):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    write_sentencepiece(tmp_path / "omniASR_tokenizer.model")
    export_checkpoint(load_checkpoint(path, with_head=True), tmp_path / "omniasr")
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True)
    export_checkpoint(loaded, tmp_path / "wav2vec2", format="wav2vec2")
    said = [
        load_recognizer(checkpoint).recognize(speech[0]).text
        for checkpoint in (path, tmp_path / "omniasr", tmp_path / "wav2vec2")
    ]
    assert said[0]
    # Stock's Wav2Vec2CTCTokenizer writes the unknown symbol, which OmniASR's processor leaves out.
    assert [text.replace("<unk>", "") for text in said] == said[:1] * 3


def test_the_character_of_the_word_delimiter_gets_another_name(tmp_path):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    write_sentencepiece(tmp_path / "a.model", (*PIECES[:10], "|"))
    loaded = load_checkpoint(path, with_head=True, as_wav2vec2=True)
    vocabulary = json.loads((loaded.folder / "vocab.json").read_text(encoding="utf-8"))
    assert (vocabulary["|"], vocabulary["｜"]) == (4, 10)


def test_pieces_of_words_have_no_place_in_a_wav2vec2_vocabulary(tmp_path):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    write_sentencepiece(tmp_path / "a.model", (*PIECES[:10], " the"), escaped=True)
    with pytest.raises(CheckpointError, match=r"' the'.*format=huggingface"):
        load_checkpoint(path, with_head=True, as_wav2vec2=True)


def test_a_tokenizer_that_does_not_fit_is_named_with_the_number_of_its_pieces(tmp_path):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    write_sentencepiece(tmp_path / "a.model", PIECES[:9])
    (tmp_path / "b.model").write_bytes(b"\x0a\x07\x0a\x05ab")
    with pytest.raises(
        CheckpointError, match=r"11 outputs.*a\.model has 9 pieces; .*b\.model is no SentencePiece model"
    ):
        read_raw_checkpoint(path)
    write_sentencepiece(tmp_path / "b.model")
    assert read_raw_checkpoint(path).pieces.path.name == "b.model"
    (tmp_path / "a.model").write_bytes((tmp_path / "b.model").read_bytes())
    assert read_raw_checkpoint(path).pieces.path.name == "a.model"
    write_sentencepiece(tmp_path / "a.model", (*PIECES[:10], "x"))
    with pytest.raises(CheckpointError, match=r"several SentencePiece models.*a\.model, b\.model"):
        read_raw_checkpoint(path)


def test_a_type_of_sentencepiece_that_is_not_supported_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"of the type bpe.*unigram or char"):
        read_sentencepiece(write_sentencepiece(tmp_path / "a.model", model_type=2))


@pytest.mark.parametrize("kept", [0, 1, 20, 60, -1])
def test_a_cut_sentencepiece_model_is_reported(tmp_path, kept):
    path = write_sentencepiece(tmp_path / "a.model")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="no SentencePiece model, or damaged"):
        read_sentencepiece(path)


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("as_wav2vec2", [True, False])
def test_missing_misshaped_and_unexpected_keys_are_named_as_the_file_has_them(tmp_path, as_wav2vec2):
    state = in_fairseq2(with_ctc())
    del state["encoder.layers.1.self_attn.k_proj.weight"]
    del state["encoder_frontend.pos_encoder.conv.weight_g"]
    state["encoder.layers.2.ffn.output_proj.bias"] = torch.zeros(5)
    state["encoder.layer_norm.bias"] = torch.zeros(24, dtype=torch.int64)
    state["encoder.layers.0.adapter.weight"] = torch.zeros(2)
    state["config"] = "text"
    path = write_fairseq2(state, tmp_path / "ctc.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, as_wav2vec2=True) if as_wav2vec2 else omniasr(path)
    text = str(caught.value)
    assert "missing: encoder.layers.1.self_attn.k_proj.weight" in text
    assert "missing: encoder_frontend.pos_encoder.conv.weight_g" in text
    assert "of shape [5] instead of [24]: encoder.layers.2.ffn.output_proj.bias" in text
    assert "of torch.int64: encoder.layer_norm.bias" in text
    assert "unexpected: encoder.layers.0.adapter.weight" in text
    assert "unexpected: config" in text
    assert text.count("\n  ") == 6


@pytest.mark.parametrize(
    "name",
    [
        "encoder_frontend.model_dim_proj.weight",
        "encoder_frontend.pos_encoder.conv.weight_v",
        "encoder.layers.0.ffn.inner_proj.weight",
        "encoder_frontend.feature_extractor.layers.3.conv.weight",
        "quantizer.entries",
        "final_target_proj.weight",
    ],
)
def test_a_missing_weight_that_shows_a_size_is_named(tmp_path, name):
    state = in_fairseq2(pretrained())
    del state[name]
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_checkpoint(write_fairseq2(state, tmp_path / "w2v.pt"), with_head=True, as_wav2vec2=True)


def test_a_norm_of_the_wrong_shape_is_named(tmp_path):
    state = in_fairseq2(with_ctc())
    state["encoder_frontend.pos_encoder.conv.weight_g"] = torch.ones(24, 1, 1)
    with pytest.raises(CheckpointError, match=r"of shape \[24, 1, 1\] instead of \[1, 1, 8\].*weight_g"):
        read_raw_checkpoint(write_fairseq2(state, tmp_path / "ctc.pt"))


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("encoder_frontend.feature_extractor.layers.0.group_norm.weight", "after each block.*wav2vec2-base"),
        ("encoder_frontend.layer_norm.weight", "after each block.*wav2vec2-base"),
        ("encoder.layers.0.self_attn.sdpa.rel_k_embed.weight", r"Conformer.*w2v-bert-2\.0"),
    ],
)
def test_other_architectures_of_fairseq2_are_named_with_what_to_use(tmp_path, added, said):
    state = in_fairseq2(with_ctc()) | {added: torch.ones(17)}
    with pytest.raises(CheckpointError, match=said):
        read_raw_checkpoint(write_fairseq2(state, tmp_path / "a.pt"))


class Malicious:
    """What a pickle of an attacker does."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    path = write_fairseq2(in_fairseq2(with_ctc()) | {"x": Malicious(tmp_path / "trace")}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"refused.*mkdir"):
        load_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_a_cut_file_is_reported(tmp_path):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "a.pt")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="damaged, cut short"):
        load_checkpoint(path)


def test_files_around_a_checkpoint_say_what_they_are(tmp_path):
    card = tmp_path / "card.yaml"
    card.write_text(
        "name: omniASR_CTC_300M\nmodel_family: wav2vec2_asr\ncheckpoint: https://host/omniASR-CTC-300M.pt\n"
    )
    with pytest.raises(CheckpointError, match=r"model card of fairseq2.*https://host/omniASR-CTC-300M\.pt"):
        load_checkpoint(card)
    tokenizer = write_sentencepiece(tmp_path / "omniASR_tokenizer.model")
    with pytest.raises(CheckpointError, match=r"SentencePiece model, the tokenizer.*\.pt"):
        load_checkpoint(tokenizer)


def test_only_omnilingual_asr_becomes_wav2vec2(tmp_path):
    with pytest.raises(CheckpointError, match="expected a fairseq2 file"):
        load_checkpoint(TINY, as_wav2vec2=True)


def test_an_old_transformers_is_told_which_version_is_needed(tmp_path, monkeypatch):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "a.pt")
    monkeypatch.setattr("w2v_attn.checkpoints.convert.fairseq2_checkpoint.is_installed", lambda _: False)
    with pytest.raises(CheckpointError, match=r"5\.24.*format=wav2vec2"):
        load_checkpoint(path)
    assert load_checkpoint(path, as_wav2vec2=True).model.config.model_type == "wav2vec2"


# -------------------------------------------------------------------------------------------------- commands


def test_commands_take_the_file_and_load_converts_it(call, tmp_path, clips):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    code, out, err = call("load", f"model.checkpoint={path}", "output=copy", "format=wav2vec2")
    assert code == 0, err
    assert "Wav2Vec2ForCTC" in out
    assert "epsilon 1e-05" in " ".join(out.split())
    for checkpoint in (path, "copy"):
        code, _, err = call("transcribe", f"audio={clips[0][0]}", f"model.checkpoint={checkpoint}", "output=heard")
        assert code == 2
        assert "omniASR_tokenizer" in err
    write_sentencepiece(tmp_path / "omniASR_tokenizer.model")
    code, _, err = call("load", f"model.checkpoint={path}", "output=whole", "format=wav2vec2")
    assert code == 0, err
    code, _, err = call("transcribe", f"audio={clips[0][0]}", "model.checkpoint=whole", "output=heard")
    assert code == 0, err
    code, _, err = call("extract", f"audio={clips[0][0]}", f"model.checkpoint={path}", "output=features")
    assert code == 0, err
    code, out, err = call("load", f"model.checkpoint={path}", "output=omniasr")
    assert code == 0, err
    assert "OmniASRForCTC" in out


@pytest.mark.slow
@pytest.mark.parametrize("form", ["file", "wav2vec2"])
def test_both_forms_verify(call, tmp_path, form):
    path = write_fairseq2(in_fairseq2(with_ctc()), tmp_path / "ctc.pt")
    write_sentencepiece(tmp_path / "omniASR_tokenizer.model")
    if form == "wav2vec2":
        assert call("load", f"model.checkpoint={path}", "output=copy", "format=wav2vec2")[0] == 0
        path = "copy"
    code, out, err = call("verify", f"model.checkpoint={path}")
    assert code == 0, out + err


def test_a_ctc_file_becomes_a_folder_of_transformers_omniasr_with_its_processor(tmp_path, wave):
    import transformers

    theirs = with_ctc()
    path = write_fairseq2(in_fairseq2(theirs), tmp_path / "from" / "ctc.pt")
    write_sentencepiece(path.parent / "omniASR_tokenizer.model")
    export_checkpoint(load_checkpoint(path, with_head=True), tmp_path / "copy")
    model = transformers.OmniASRForCTC.from_pretrained(tmp_path / "copy")
    assert (model.config.blank_token_id, model.config.pad_token_id, model.config.vocab_size) == (0, 1, 11)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "copy")
    assert type(processor).__name__ == "OmniASRCTCProcessor"
    assert processor.tokenizer("e ñ").input_ids == [5, 4, 8]
    assert processor.decode([0, 6, 6, 0, 6, 5, 4, 4, 0, 8], skip_special_tokens=True) == "tte ñ"
    inputs = processor(wave[0].numpy(), sampling_rate=16_000)
    with torch.no_grad():
        expected = theirs(torch.nn.functional.layer_norm(wave, wave.shape[1:])).logits
        assert (model(**inputs).logits - expected).abs().max() < 1e-4
