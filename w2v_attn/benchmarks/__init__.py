"""Benchmarks of this package against peers, which check in the same run that results agree: `w2v-attn benchmark`."""
