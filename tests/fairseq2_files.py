"""Files of fairseq2 with the names that its models have, written from stock models; and SentencePiece models."""

import re

import torch
import yaml

# Names in transformers' Wav2Vec2 -> in fairseq2, in this order. Written for the tests, not from the package.
RENAMED = [
    (r"\.parametrizations\.weight\.original0", ".weight_g"),
    (r"\.parametrizations\.weight\.original1", ".weight_v"),
    (r"^masked_spec_embed", "masker.temporal_mask_embed"),
    (r"^feature_projection\.layer_norm", "encoder_frontend.post_extract_layer_norm"),
    (r"^feature_projection\.projection", "encoder_frontend.model_dim_proj"),
    (r"^feature_extractor\.conv_layers", "encoder_frontend.feature_extractor.layers"),
    (r"^encoder\.pos_conv_embed", "encoder_frontend.pos_encoder"),
    (r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"(encoder_frontend\.feature_extractor\.layers\.\d+)\.self_attn_layer_norm", r"\1.layer_norm"),
    (r"\.final_layer_norm", ".ffn_layer_norm"),
    (r"\.attention\.out_proj", ".self_attn.output_proj"),
    (r"\.attention\.", ".self_attn."),
    (r"\.feed_forward\.intermediate_dense", ".ffn.inner_proj"),
    (r"\.feed_forward\.output_dense", ".ffn.output_proj"),
    (r"^quantizer\.codevectors", "quantizer.entries"),
    (r"^quantizer\.weight_proj", "quantizer.entry_proj"),
    (r"^project_hid", "final_proj"),
    (r"^project_q", "final_target_proj"),
    (r"^lm_head", "final_proj"),
]


def in_fairseq2(model):
    """The weights of a stock Wav2Vec2 model under the names that fairseq2's checkpoints have."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix(f"{model.base_model_prefix}.")
        for pattern, there in RENAMED:
            name = re.sub(pattern, there, name)
        state[name] = tensor
    if "quantizer.entries" in state:
        state["quantizer.num_updates"] = torch.tensor(400_000)
    else:
        state.pop("masker.temporal_mask_embed", None)  # CTC models were trained without masking
    return state


def write_fairseq2(state, path, *, heads=4, wrapped=True):
    """Write weights as a fairseq2 file with model.yaml next to it, which has the number of heads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state} if wrapped else state, path)
    if heads is not None:
        encoder = {"num_encoder_attn_heads": heads, "norm_order": "PRE"}
        metadata = {
            "name": "checkpoint",
            "model_family": "wav2vec2_asr",
            "model_config": {"encoder_config": encoder, "target_vocab_size": 11},
        }
        (path.parent / "model.yaml").write_text(yaml.safe_dump(metadata))
    return path


# As in Omnilingual ASR: four special pieces, and the space is a piece itself. 11 as the tiny models have outputs.
PIECES = ("<s>", "<pad>", "</s>", "<unk>", " ", "e", "t", "a", "ñ", "n", "'")


def write_sentencepiece(path, pieces=PIECES, *, escaped=False, model_type=1):
    """Write a SentencePiece model with transformers' protocol buffers."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    kinds = {"<s>": 3, "<pad>": 3, "</s>": 3, "<unk>": 2}
    for number, text in enumerate(pieces):
        text = text.replace(" ", "▁") if escaped else text
        model.pieces.add(piece=text, score=-0.5 * number, type=kinds.get(text, 1))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = model_type
    trainer.vocab_size = len(pieces)
    trainer.bos_id, trainer.pad_id, trainer.eos_id, trainer.unk_id = 0, 1, 2, 3
    normalizer.name = "identity"
    normalizer.escape_whitespaces = normalizer.add_dummy_prefix = escaped
    path.write_bytes(model.SerializeToString())
    return path
