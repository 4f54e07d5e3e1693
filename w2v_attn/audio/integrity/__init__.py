"""Whether an audio file is whole: what its header announces and what its frames bear out."""
