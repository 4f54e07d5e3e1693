"""Ways to compute the features of an encoder: ours and peers', each a class behind the protocol in `contender.py`."""
