"""Fine-tuning: a recipe becomes a trained model folder; evaluation of labelled recordings."""
