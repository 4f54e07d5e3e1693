"""Fine-tuning: rows and a recipe in, a Hugging Face folder out. Trainer drives it; the attention is ours."""
