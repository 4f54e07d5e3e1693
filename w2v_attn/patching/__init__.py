"""Our attention in Hugging Face's models: replacing, restoring, unpadding."""
