"""The layer. Knows torch and nothing else."""
