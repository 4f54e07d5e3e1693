"""Stored features: opening, selecting layers, pooling, converting to other layouts."""
