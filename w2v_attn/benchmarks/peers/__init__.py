"""Contenders that compute the features of an encoder: ours and peers, behind the protocol in `contender.py`."""
