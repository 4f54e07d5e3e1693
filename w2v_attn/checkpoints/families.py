"""Supported model families of Hugging Face: `model_type` -> module and class of the attention blocks."""

from importlib.util import find_spec
from typing import Any

FAMILIES = {
    "wav2vec2": ("transformers.models.wav2vec2.modeling_wav2vec2", "Wav2Vec2Attention"),
    "hubert": ("transformers.models.hubert.modeling_hubert", "HubertAttention"),
    "data2vec-audio": ("transformers.models.data2vec.modeling_data2vec_audio", "Data2VecAudioAttention"),
    "unispeech": ("transformers.models.unispeech.modeling_unispeech", "UniSpeechAttention"),
    "unispeech-sat": ("transformers.models.unispeech_sat.modeling_unispeech_sat", "UniSpeechSatAttention"),
    "wavlm": ("transformers.models.wavlm.modeling_wavlm", "WavLMAttention"),
    "wav2vec2-conformer": (
        "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer",
        "Wav2Vec2ConformerSelfAttention",
    ),
    "wav2vec2-bert": ("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert", "Wav2Vec2BertSelfAttention"),
    "omniasr_audio": ("transformers.models.omniasr.modeling_omniasr", "OmniASRAttention"),
    "omniasr_ctc": ("transformers.models.omniasr.modeling_omniasr", "OmniASRAttention"),
    "omniasr": ("transformers.models.omniasr.modeling_omniasr", "OmniASRAttention"),
    "sew": ("transformers.models.sew.modeling_sew", "SEWAttention"),
}
# Families that not all supported versions of transformers have -> the first version that has them.
FIRST_VERSIONS: dict[str, str] = dict.fromkeys(("omniasr_audio", "omniasr_ctc", "omniasr"), "5.24")
# Families whose models have a language model after the encoder: only the encoder is ever loaded.
WITH_LANGUAGE_MODEL = frozenset({"omniasr"})

_NO_BLOCKS = "it has no blocks of wav2vec 2.0, so that nothing in it could be replaced"
_W2V_BERT = "the encoder of this kind that is supported is w2v-BERT 2.0: facebook/w2v-bert-2.0"

# Families that users may expect, and why they are not supported, with what is, where there is something near.
UNSUPPORTED = {
    "sew-d": "its disentangled attention adds content-to-position and position-to-content terms to the scores, in "
    "buckets, with its own softmax and dropout, which this layer does not compute. Its sibling SEW is supported, such "
    "as asapp/sew-tiny-100k",
    "speecht5": "its encoder, which text and speech share, has blocks with relative positions of its own behind "
    "wav2vec 2.0's convolutions, and it ends in a decoder. For features or CTC use an encoder of speech, such as "
    "facebook/wav2vec2-base",
    "speech-encoder-decoder": "it joins an encoder with a decoder of text. Load it with transformers: "
    "replace_attention takes the model if its encoder is of a supported family",
    "seamless_m4t": f"its speech encoder is part of a translation model; {_W2V_BERT}",
    "seamless_m4t_v2": f"its speech encoder is part of a translation model; {_W2V_BERT}",
    "univnet": "it is a vocoder, which makes waveforms from mel spectrograms",
    **dict.fromkeys(
        (
            "audio-spectrogram-transformer canary clap cohere_asr dac encodec gemma3n_audio gemma4_audio "
            "granite_speech granite_speech5_ctc granite_speech_plus kyutai_speech_to_text lasr_ctc lasr_encoder mctct "
            "mimi moonshine moonshine_streaming nemotron3_diarization nemotron_asr_streaming parakeet_ctc "
            "parakeet_encoder parakeet_rnnt parakeet_tdt qwen3_asr speech_to_text voxtral voxtral_realtime whisper"
        ).split(),
        _NO_BLOCKS,
    ),
}


def is_installed(family: str) -> bool:
    """Return whether the installed transformers has a supported family."""
    return find_spec(FAMILIES[family][0].rpartition(".")[0]) is not None


def not_installed(family: str) -> str:
    """Return why a family cannot be used, and what to do, where the installed transformers does not have it."""
    import transformers

    return (
        f"the family “{family}” is not in transformers {transformers.__version__}: "
        f'pip install "transformers>={FIRST_VERSIONS[family]}"'
    )


def is_omniasr(config: Any) -> bool:
    """Return whether a config is that of OmniASR, with or without a head."""
    return config.model_type.startswith("omniasr")


def supported_families() -> str:
    """Return the supported families, separated by commas."""
    return ", ".join(FAMILIES)
