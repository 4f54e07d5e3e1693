"""Implementations of the attention core behind one interface, and the choice between them."""
