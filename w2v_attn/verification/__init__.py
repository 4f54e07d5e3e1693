"""Comparison with stock transformers on the same weights, stage by stage: `w2v-attn verify`."""
