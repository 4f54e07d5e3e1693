"""Checkpoints: load a hub id, folder or file as a model with every weight accounted for, and export models to files."""
