"""Stock against ours on the same weights, stage by stage: what `w2v-attn verify` proves."""
