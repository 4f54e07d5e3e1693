"""Stock and our attention compared on the same weights, stage by stage: `w2v-attn verify`."""
