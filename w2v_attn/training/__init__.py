"""Fine-tuning: rows and a recipe in, a Hugging Face folder out. transformers' Trainer runs the loop."""
