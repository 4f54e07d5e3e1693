"""`python -m w2v_attn COMMAND` is `w2v-attn COMMAND`."""

from w2v_attn.app import main

main()
