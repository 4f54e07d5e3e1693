"""What is raised when a checkpoint cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used. The text says what was expected, what was found, and the way out."""


def first_line(error: BaseException) -> str:
    """The beginning of what another library says, short enough to stand inside a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
