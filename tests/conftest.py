"""What several test modules stand on: tiny models of every family in both norm styles, and real speech."""

import csv
import gc
import logging
import os
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: each process has a core of its own

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is wrong
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, whichever test does that first

import w2v_attn  # noqa: F401 - makes torchaudio importable before transformers asks for it

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "data" / "speech"
TINY = ROOT / "data" / "tiny"

# Primes where sizes need not divide each other; the head size 6 = 24 / 4.
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 29,
    "conv_dim": (17,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 11,
}
GROUP_NORM = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
# So few that a second of speech reaches beyond them.
FEW_BUCKETS = {"num_buckets": 12, "max_bucket_distance": 9}
CONFORMER = {"feat_extract_norm": "layer", "conv_bias": True, "conv_depthwise_kernel_size": 5}

# Name -> (prefix of the classes in transformers, what differs from SIZES).
FAMILIES = {
    "wav2vec2-group": ("Wav2Vec2", GROUP_NORM),
    "wav2vec2-layer": ("Wav2Vec2", LAYER_NORM),
    "hubert-group": ("Hubert", GROUP_NORM),
    "hubert-layer": ("Hubert", LAYER_NORM),
    "data2vec-audio": ("Data2VecAudio", {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "unispeech-group": ("UniSpeech", {**GROUP_NORM, "num_ctc_classes": 11}),
    "unispeech-layer": ("UniSpeech", {**LAYER_NORM, "num_ctc_classes": 11}),
    "unispeech-sat-group": ("UniSpeechSat", GROUP_NORM),
    "unispeech-sat-layer": ("UniSpeechSat", LAYER_NORM),
    "wavlm-group": ("WavLM", {**GROUP_NORM, **FEW_BUCKETS}),
    "wavlm-layer": ("WavLM", {**LAYER_NORM, **FEW_BUCKETS}),
    "sew": ("SEW", {"squeeze_factor": 2}),
    "conformer-relative": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "relative"}),
    "conformer-rotary": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "rotary"}),
}
# With the family whose models have other parts and other arguments, see `encoder_of` and `run`.
ALL_FAMILIES = (*FAMILIES, "omniasr")
CONFORMERS = ("conformer-relative", "conformer-rotary")
# Families whose code transformers copies from wav2vec2's.
COPIES = ("hubert", "unispeech")


# Families of the cases that run by default: both norm styles, one with biases, one of other parts. The others are slow.
REPRESENTATIVES = ("wav2vec2-group", "wav2vec2-layer", "wavlm-layer", "omniasr")


def in_large_table(family: str, *others: object):
    """A case of a large table of families."""
    return pytest.param(family, *others, marks=[] if family in REPRESENTATIVES else [pytest.mark.slow])


def large_table(families: Iterable[str], *columns: Iterable[object]):
    """The cases of a large table: families × columns. The copies of wav2vec2 take turns, one for each combination."""
    families = list(families)
    copies = [family for family in families if family.startswith(COPIES)]
    for number, others in enumerate(product(*columns)):
        turn = number + number // max(1, len(copies))  # so that a copy does not meet the same values of a column always
        for family in families:
            if family not in copies or family == copies[turn % len(copies)]:
                yield in_large_table(family, *others)


def tiny_model(family: str, head: str = "Model", *, attention: str = "sdpa", seed: int = 0, **changes):
    """A randomly initialised stock model of a family, tiny, in evaluation mode."""
    import transformers

    if family == "omniasr":
        return tiny_omniasr({"Model": "AudioModel"}.get(head, head), attention=attention, seed=seed, **changes)
    prefix, differences = FAMILIES[family]
    config_class = getattr(transformers, f"{prefix}Config")
    torch.manual_seed(seed)
    config = config_class(**{**SIZES, **differences, **changes})
    config._attn_implementation = "eager" if prefix == "WavLM" else attention  # it has no other
    model = getattr(transformers, f"{prefix}{head}")(config)
    # Biases and norms start as zeros and ones, with which a forgotten one would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


# What the classes of OmniASR are built from beside the encoder.
OMNIASR = {
    "AudioModel": {},
    "CTCModel": {},
    "ForCTC": {"vocab_size": 11},
    "Model": {"audio_token_id": 30},
    "ForConditionalGeneration": {"audio_token_id": 30},
}
TEXT_MODEL = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def tiny_omniasr(head: str = "AudioModel", *, attention: str = "sdpa", seed: int = 0, **changes):
    """The same for OmniASR. head: a key of OMNIASR, the name of its class without the prefix."""
    import transformers

    torch.manual_seed(seed)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim")
    names += ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups")
    sizes = {**{name: SIZES[name] for name in names}, **changes}
    if head == "AudioModel":
        config = transformers.OmniASRAudioConfig(**sizes)
    elif "CTC" in head:
        config = transformers.OmniASRCTCConfig(audio_config=sizes, **OMNIASR[head])
    else:
        config = transformers.OmniASRConfig(audio_config=sizes, text_config=TEXT_MODEL, **OMNIASR[head])
    model = getattr(transformers, f"OmniASR{head}")._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def encoder_of(model):
    """The module of any model whose forward runs the blocks."""
    from w2v_attn.checkpoints.encoder_parts import base_encoder, encoder_parts

    return encoder_parts(base_encoder(model)).encoder


def run(model, values, mask=None, **options):
    """What any model makes of waveforms [B, samples] with a mask [B, samples]."""
    from w2v_attn.checkpoints.encoder_parts import model_inputs

    return model(**model_inputs(model, values, mask), **options)


def tiny_bert(positions: str | None = "relative_key", head: str = "Model", **changes):
    """The same for Wav2Vec2-BERT, which reads filter banks and not waveforms."""
    import transformers

    torch.manual_seed(0)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    sizes = {**{name: SIZES[name] for name in names}, "conv_depthwise_kernel_size": 5}
    reach = {"left_max_position_embeddings": 7, "right_max_position_embeddings": 3}
    config = transformers.Wav2Vec2BertConfig(**sizes, **reach, position_embeddings_type=positions, **changes)
    config._attn_implementation = "eager"  # which can be asked for its scores
    model = getattr(transformers, f"Wav2Vec2Bert{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage():
    """What is imported stays. The collector need not walk it: Trainer and every measured peak ask for a collection."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # what is frozen at the interpreter's end counts as leaked


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=["MKL's", "another"])
def maker(request, monkeypatch):
    """Who made this processor: both ways to compute are tried wherever tests run."""
    from w2v_attn.ops import gemm

    monkeypatch.setattr(gemm, "_is_made_by_intel", lambda: request.param == "MKL's")
    return request.param


@pytest.fixture(params=["wav2vec2-group", "wav2vec2-layer"])
def norm_style(request):
    return request.param


@pytest.fixture(scope="session")
def clips():
    """(path, text) of every bundled clip."""
    with (SPEECH / "clips.csv").open() as file:
        return [(SPEECH / row["path"], row["text"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def speech(clips):
    """Three waveforms of real speech of different lengths, float32 [samples] at 16 kHz."""
    from w2v_attn import read_audio

    waves = [read_audio(clips[number][0]) for number in (3, 0, 10)]
    assert len({len(wave) for wave in waves}) == 3
    return waves


@pytest.fixture
def one_thread():
    """As processes have that share two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own_logging():
    """Undo what Hydra does to the logging of the process: it would write to the standard error of an ended test."""
    root = logging.getLogger()
    handlers, level = set(root.handlers), root.level
    yield
    for handler in set(root.handlers) - handlers:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path, own_logging):
    """Runs a command in an empty folder -> (exit code, standard output, standard error)."""
    from w2v_attn.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as done:
            app.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return done.value.code, captured.out, captured.err

    return run


@pytest.fixture
def group_checkpoint(tmp_path):
    """A folder with a tiny CTC checkpoint in group-norm form."""
    return save(tiny_model("wav2vec2-group", "ForCTC"), tmp_path / "group")


@pytest.fixture
def layer_checkpoint(tmp_path):
    """A folder with a tiny base checkpoint in layer-norm form."""
    return save(tiny_model("wav2vec2-layer"), tmp_path / "layer")


def save(model, folder: Path, **options) -> Path:
    import transformers

    model.save_pretrained(folder, **options)
    name = "OmniASR" if model.config.model_type.startswith("omniasr") else "Wav2Vec2"
    getattr(transformers, f"{name}FeatureExtractor")(do_normalize=True).save_pretrained(folder)
    return folder


# Recordings whose features are on disk: names that are odd or alike, and primes; one of a single frame.
IDS = ["a.flac", "a.wav", "b c/é (1).wav", "b c/x", "b c/x/final.wav", "😀.ogg"]
FRAMES = [7, 1, 13, 5, 3, 11]
LAYERS = ("embed", "layer_02", "layer_10", "final")


def made(number, frames, layers=LAYERS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    features = {layer: torch.randn(frames, 5, generator=generator).to(dtype) for layer in layers}
    metadata = {
        "id": IDS[number],
        "frame_rate": "50",
        "samples": str(400 + 320 * (frames - 1)),
        "layers": ",".join(layers),
        "flags": "",
        "dtype": str(dtype).removeprefix("torch."),
    }
    return features, metadata


@pytest.fixture
def corpus():
    """Id -> (features, metadata) of recordings with odd names and of different lengths."""
    return {id: made(number, frames) for number, (id, frames) in enumerate(zip(IDS, FRAMES, strict=True))}


@pytest.fixture
def mirrored(corpus, tmp_path):
    """A folder as extraction writes it."""
    from w2v_attn.feature_files import write_features

    folder = tmp_path / "mirrored"
    for id, (features, metadata) in corpus.items():
        write_features(folder / f"{id}.safetensors", features, metadata)
    return folder
