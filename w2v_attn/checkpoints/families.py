"""The Hugging Face families whose attention we compute: `model_type` -> the class of their attention blocks."""

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
    "sew": ("transformers.models.sew.modeling_sew", "SEWAttention"),
}

# Families that people will ask for, and why they are not above.
UNSUPPORTED = {
    "sew-d": "its disentangled attention adds to a score what the key says of its distance as well as what the query "
    "says, in buckets, with a softmax and dropout of its own: another layer than ours",
}


def supported_families() -> str:
    """The families as a sentence names them."""
    return ", ".join(FAMILIES)
