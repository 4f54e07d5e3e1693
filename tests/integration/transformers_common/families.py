"""The models that the common tests are run on: each family, in both norm styles, with every head it has."""

import unittest

import transformers

from .test_modeling_common import ModelTesterMixin, floats_tensor, random_attention_mask

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 32,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
    "tdnn_dim": (32, 32),
    "tdnn_kernel": (5, 3),
    "tdnn_dilation": (1, 2),
    "xvector_output_dim": 32,
}
CONVOLUTIONS = {
    "conv_dim": (32, 32, 32),
    "conv_kernel": (8, 8, 8),
    "conv_stride": (4, 4, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "num_ctc_classes": 32,
}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
BUCKETS = {"num_buckets": 12, "max_bucket_distance": 9}
CONFORMER = {"conv_depthwise_kernel_size": 5}
REACH = {"left_max_position_embeddings": 7, "right_max_position_embeddings": 3}
# Seconds do not matter: samples of a waveform, frames and channels of filter banks.
BATCH, SAMPLES, FRAMES, BANKS = 3, 1024, 24, 8

USUAL = ("Model", "ForCTC", "ForSequenceClassification")
FRAME_HEADS = ("ForAudioFrameClassification", "ForXVector")
HEADS = {
    "Wav2Vec2": (*USUAL, "ForPreTraining", *FRAME_HEADS),
    "Hubert": USUAL,
    "Data2VecAudio": (*USUAL, *FRAME_HEADS),
    "UniSpeech": (*USUAL, "ForPreTraining"),
    "UniSpeechSat": (*USUAL, "ForPreTraining", *FRAME_HEADS),
    "SEW": USUAL,
    "WavLM": (*USUAL, *FRAME_HEADS),
    "Wav2Vec2Conformer": (*USUAL, "ForPreTraining", *FRAME_HEADS),
    "Wav2Vec2Bert": (*USUAL, *FRAME_HEADS),
    "OmniASRAudio": ("Model",),
}
CASES = {
    "wav2vec2_group": ("Wav2Vec2", GROUP),
    "wav2vec2_layer": ("Wav2Vec2", LAYER),
    "hubert_group": ("Hubert", GROUP),
    "hubert_layer": ("Hubert", LAYER),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "unispeech_group": ("UniSpeech", GROUP),
    "unispeech_layer": ("UniSpeech", LAYER),
    "unispeechsat_group": ("UniSpeechSat", GROUP),
    "unispeechsat_layer": ("UniSpeechSat", LAYER),
    "sew": ("SEW", {"squeeze_factor": 2}),
    "wavlm_group": ("WavLM", {**GROUP, **BUCKETS}),
    "wavlm_layer": ("WavLM", {**LAYER, **BUCKETS}),
    "conformer_relative": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "relative"}),
    "conformer_rotary": ("Wav2Vec2Conformer", {**CONFORMER, "position_embeddings_type": "rotary"}),
    "omniasr": ("OmniASRAudio", {}),
    "bert": ("Wav2Vec2Bert", {**CONFORMER, **REACH, "position_embeddings_type": "relative_key"}),
}
# What does not hold, and why.
EXCEPTIONS = {
    "test_model_get_set_embeddings": "a model of waveforms has no embeddings of tokens; stock's fails as well"
}


class Tester:
    """What the common tests ask of a model: its config, an input, and the sizes of what comes out."""

    batch_size, is_training = BATCH, False
    hidden_size, num_hidden_layers, num_attention_heads = (
        SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )

    def __init__(self, prefix, changes):
        self.prefix = prefix
        self.reads_banks = prefix == "Wav2Vec2Bert"
        own = {"feature_projection_input_dim": BANKS} if self.reads_banks else CONVOLUTIONS
        self.changes = {**SIZES, **own, **changes}
        self.seq_length = FRAMES if self.reads_banks else SAMPLES
        frames = self.seq_length
        for kernel, stride in () if self.reads_banks else zip(own["conv_kernel"], own["conv_stride"], strict=True):
            frames = (frames - kernel) // stride + 1
        self.output_seq_length = frames
        self.encoder_seq_length = self.key_length = frames // changes.get("squeeze_factor", 1)

    def get_config(self):
        return getattr(transformers, f"{self.prefix}Config")(**self.changes)

    def prepare_config_and_inputs_for_common(self):
        size = [BATCH, self.seq_length]
        values = floats_tensor([*size, BANKS] if self.reads_banks else size, scale=1.0)
        name = "input_features" if self.reads_banks else "input_values"
        if self.prefix == "OmniASRAudio":
            return self.get_config(), {name: values[:, None], "padding_mask": random_attention_mask(size)}
        return self.get_config(), {name: values, "attention_mask": random_attention_mask(size)}


def case(prefix, changes):
    """The common tests of one family."""

    def set_up(self):
        self.model_tester = Tester(prefix, changes)

    members = {
        "setUp": set_up,
        "all_model_classes": tuple(getattr(transformers, prefix + head) for head in HEADS[prefix]),
        "pipeline_model_mapping": {},
        "test_resize_embeddings": False,  # there are none
        "fx_compatible": False,
        **{name: unittest.skip(reason)(getattr(ModelTesterMixin, name)) for name, reason in EXCEPTIONS.items()},
    }
    return type(f"Test_{prefix}", (ModelTesterMixin, unittest.TestCase), members)


globals().update({f"Test_{name}": case(*about) for name, about in CASES.items()})
