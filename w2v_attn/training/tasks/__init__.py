"""Fine-tuning tasks: one file for each."""
