"""Pretrained encoders: loading them, and our attention in them. Knows attention and transformers."""
