"""Multi-head self-attention: the layer, its mathematics and its backends. Imports nothing but torch and `ops`."""
