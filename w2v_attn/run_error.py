"""The error that ends a run, below everything that raises it."""


class RunError(Exception):
    """The run cannot continue. What was written stays, and the same command resumes it."""
