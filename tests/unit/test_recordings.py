"""`extract` and `recognize` take recordings as people hold them, or say what to pass."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import SPEECH, TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from w2v_attn import load_encoder, read_audio
from w2v_attn.encoder.recordings import is_single, to_waveform
from w2v_attn.transcription.load_recognizer import load_recognizer

CLIP = next(iter(sorted(SPEECH.rglob("*.flac"))))
WAVE = read_audio(CLIP)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(TINY)


def decoder(data, rate):
    """What datasets gives for a column of audio."""
    return SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=data, sample_rate=rate))


SAME = {
    "a tensor": lambda: WAVE,
    "an array": lambda: WAVE.numpy(),
    "float64": lambda: WAVE.double().numpy(),
    "a list of numbers": lambda: WAVE.tolist(),
    "one channel": lambda: WAVE[None],
    "two equal channels": lambda: np.stack([WAVE, WAVE]),
    "a path": lambda: CLIP,
    "a path as text": lambda: str(CLIP),
    "a dictionary": lambda: {"array": WAVE.numpy(), "sampling_rate": 16_000, "path": None},
    "a pipeline's dictionary": lambda: {"raw": WAVE.numpy(), "sampling_rate": 16_000},
    "a dictionary with a path": lambda: {"path": str(CLIP), "bytes": None},
    "a row of a data set": lambda: {"audio": {"array": WAVE.numpy(), "sampling_rate": 16_000}, "text": "three"},
    "a pair": lambda: (WAVE[None], 16_000),
    "a decoder": lambda: decoder(WAVE[None], 16_000),
    "decoded samples": lambda: decoder(WAVE[None], 16_000).get_all_samples(),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_of_a_recording_gives_the_same_features(form, encoder):
    [expected] = encoder.extract([WAVE])
    recording = SAME[form]()
    for found in (encoder.extract(recording), encoder.extract([recording])[0]):
        torch.testing.assert_close(found["final"], expected["final"], rtol=1e-4, atol=1e-4)
    assert load_recognizer(TINY).recognize(recording).text == load_recognizer(TINY).recognize(WAVE).text


def test_one_recording_gives_a_dictionary_and_a_list_a_list(encoder):
    assert isinstance(encoder.extract(CLIP), dict)
    assert [type(one) for one in encoder.extract([CLIP])] == [dict]
    assert len(encoder.extract([CLIP, WAVE, {"array": WAVE, "sampling_rate": 16_000}])) == 3
    assert len(encoder.extract(wave for wave in (WAVE, WAVE))) == 2
    assert encoder.extract([]) == []


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32])
@given(value=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_integer_samples_have_a_full_scale_of_one(dtype, value):
    limits = np.iinfo(dtype)
    number = limits.min + value % (int(limits.max) - int(limits.min) + 1)
    bits = limits.bits - 1
    expected = Fraction(number - (128 if dtype is np.uint8 else 0), 2**bits)
    found = to_waveform(np.full(3, number, dtype), 16_000)
    assert found.dtype == torch.float32
    assert float(found[0]) == pytest.approx(float(expected), abs=1e-7)
    assert -1 <= float(found[0]) <= 1


def test_int16_is_read_as_soundfile_scales_it(tmp_path):
    integers = (np.random.default_rng(0).standard_normal(2000) * 9000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", integers, 16_000, subtype="PCM_16")
    assert torch.equal(to_waveform(integers, 16_000), read_audio(tmp_path / "a.wav"))


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_another_rate_is_resampled_as_a_file_is(rate, tmp_path):
    samples = (0.1 * np.random.default_rng(0).standard_normal((rate, 2))).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    theirs = read_audio(tmp_path / "a.wav")
    forms = [
        to_waveform(samples.T, 16_000, rate),
        to_waveform((samples.T, rate), 16_000),
        to_waveform({"array": samples.T, "sampling_rate": rate}, 16_000),
        to_waveform(decoder(torch.from_numpy(samples.T), rate), 16_000),
    ]
    for ours in forms:
        assert torch.equal(ours, theirs)


def test_what_a_recording_states_about_its_rate_wins(encoder):
    found = encoder.extract({"array": WAVE, "sampling_rate": 16_000}, sampling_rate=8_000)
    assert torch.equal(found["final"], encoder.extract(WAVE)["final"])


def test_channels_are_averaged():
    left, right = WAVE, -0.5 * WAVE
    assert torch.equal(to_waveform(torch.stack([left, right]), 16_000), torch.stack([left, right]).mean(0))


WRONG = {
    "[samples, channels]": (lambda: WAVE[:, None].expand(-1, 2), r"\[\d+, 2\].*pass x.T"),
    "a batch": (lambda: torch.zeros(100, 16_000), "pass several recordings as a list"),
    "three dimensions": (lambda: torch.zeros(1, 1, 800), r"\[channels, samples\], got \[1, 1, 800\]"),
    "a number": (lambda: 0.5, r"got \[\]"),
    "int64": (lambda: np.zeros(800, np.int64), "samples of int64 have no known full scale: pass float32"),
    "bool": (lambda: np.zeros(800, bool), "samples of bool have no known full scale"),
    "NaN": (lambda: torch.full((800,), float("nan")), "NaN or infinite"),
    "NaN at another rate": (lambda: (torch.full((800,), float("inf")), 8_000), "NaN or infinite"),
    "too short": (lambda: torch.zeros(99), "at least 400"),
    "no rate": (lambda: {"array": WAVE}, 'has no "sampling_rate"'),
    "a rate in kHz": (lambda: {"array": WAVE, "sampling_rate": 16}, "a sample rate is a whole number of Hz"),
    "no samples": (lambda: {"text": "a"}, r'must have "array" and "sampling_rate".*\'text\''),
    "no such file": (lambda: "absent.wav", "absent.wav"),
    "text of no path": (lambda: None, "a recording must be"),
    "an object": (lambda: np.array([{}, {}]), "a recording must be"),
}


@pytest.mark.parametrize(
    ("form", "in_a_list"),
    [(form, in_a_list) for form in WRONG for in_a_list in (False, True) if (form, in_a_list) != ("a number", True)],
)
def test_what_is_no_recording_is_answered_with_what_to_pass(form, in_a_list, encoder):
    make, says = WRONG[form]
    with pytest.raises(ValueError, match=("recording 1 .*" if in_a_list else "") + says):
        encoder.extract([WAVE, make()] if in_a_list else make())


def test_a_recognizer_takes_one_recording():
    with pytest.raises(ValueError, match="one recording is expected here, got a list of 2"):
        load_recognizer(TINY).recognize([WAVE, WAVE])


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
@settings(deadline=None, max_examples=20)
def test_a_list_of_numbers_is_one_recording(numbers):
    assert is_single(numbers)
    assert not is_single([numbers])
    assert to_waveform(numbers, 16_000).tolist() == pytest.approx(numbers, abs=1e-12)


def test_an_encoder_says_what_it_is(encoder):
    assert repr(encoder) == (
        f"Encoder({TINY}: wav2vec2, 4 blocks of 128 channels, 50 frames/s, float32 on {encoder.device})"
    )
    assert Path(encoder.checkpoint.source) == TINY


LAYERS = {
    12: None, -5: None, "5": None, 4: "layer_04", 0: "embed", -1: "layer_04", -4: "layer_01", "2": "layer_02",
    "layer_02": "layer_02", np.int64(3): "layer_03",
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
def test_integers_are_layers(layer, encoder):
    if LAYERS[layer] is None:
        with pytest.raises(
            ValueError, match=r"4 blocks, so a number is 0 \(embed\) to 4, or -1 \(the last block\) to -4"
        ):
            encoder.extract(WAVE, layers=[layer])
    else:
        [name] = encoder.extract(WAVE, layers=[layer])
        assert name == LAYERS[layer]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("2-3", ["layer_02", "layer_03"]),
        (["0-1", "final"], ["embed", "layer_01", "final"]),
        (["-2--1"], ["layer_03", "layer_04"]),
        (["layer_03-final"], ["layer_03", "layer_04", "final"]),
        ([-1, 4], ["layer_04"]),
        (3, ["layer_03"]),
    ],
)
def test_ranges_may_be_of_numbers(layers, names, encoder):
    assert list(encoder.extract(WAVE, layers=layers)) == names


def test_numbers_are_transformers_hidden_states_before_a_final_norm(encoder):
    """`hidden_states[n]` of stock is what leaves block n, but for the last one of pre-norm models, which is normed."""
    with torch.no_grad():
        stock = encoder.model(encoder.prepare(WAVE)[None], output_hidden_states=True).hidden_states
    ours = encoder.extract(WAVE, layers=range(5))
    for number, name in enumerate(ours):
        torch.testing.assert_close(ours[name], stock[number][0], rtol=1e-4, atol=1e-4)
