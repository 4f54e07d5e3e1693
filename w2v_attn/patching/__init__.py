"""Patches of Hugging Face's models: replacing and restoring their attention, and unpadding their encoders."""
