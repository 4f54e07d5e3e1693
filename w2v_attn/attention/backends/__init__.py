"""Backends: implementations of steps (2) to (5) of the attention with one interface, and their selection."""
