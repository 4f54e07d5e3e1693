"""The Hugging Face families whose attention is wav2vec 2.0's: `model_type` -> the class of their attention blocks."""

FAMILIES = {
    "wav2vec2": ("transformers.models.wav2vec2.modeling_wav2vec2", "Wav2Vec2Attention"),
    "hubert": ("transformers.models.hubert.modeling_hubert", "HubertAttention"),
    "data2vec-audio": ("transformers.models.data2vec.modeling_data2vec_audio", "Data2VecAudioAttention"),
    "unispeech": ("transformers.models.unispeech.modeling_unispeech", "UniSpeechAttention"),
    "unispeech-sat": ("transformers.models.unispeech_sat.modeling_unispeech_sat", "UniSpeechSatAttention"),
    "sew": ("transformers.models.sew.modeling_sew", "SEWAttention"),
}


def supported() -> str:
    """The families as a sentence names them."""
    return ", ".join(FAMILIES)
