"""The error that ends a run: the decoder and every kind of run raise it, so it is below all of them."""


class RunError(Exception):
    """The run cannot continue. What was written stays, and the same command resumes it."""
