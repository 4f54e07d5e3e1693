"""What `w2v-attn benchmark` measures: ours and peers side by side, with equality checked in the same run."""
