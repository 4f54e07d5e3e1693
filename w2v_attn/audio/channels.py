"""The choice of a channel: the mean of all, or one by its name or number."""

MEAN = "mean"
NAMED = {"left": 0, "right": 1}


def channel_number(channel: str | int) -> int | None:
    """Return the number of a channel, from 0; None for the mean of all channels.

    Args:
        channel: mean, left (0), right (1), or a number from 0.

    Raises:
        ValueError: it is none of these.
    """
    if channel == MEAN:
        return None
    text = str(channel)
    if text in NAMED:
        return NAMED[text]
    if isinstance(channel, bool) or not (text.isascii() and text.isdecimal()):
        raise ValueError(f"channel must be mean, left, right or a number from 0, got {channel}")
    return int(text)


def channel_fingerprint(channel: str | int) -> dict[str, str]:
    """Return the entry of a run's fingerprint for a channel; none for the mean."""
    number = channel_number(channel)
    return {} if number is None else {"channel": str(number)}


def conversions(source_rate: int, rate: int, channels: int, channel: int | None) -> tuple[str, ...]:
    """Return how a recording was converted, as a summary counts it: "resampled from 8 kHz", "mixed from stereo".

    Args:
        source_rate, rate: Hz of the file and of the waveform.
        channels: Number of channels of the file.
        channel: Number of the channel that was read; None: the mean of all.
    """
    found: list[str] = []
    if source_rate != rate:
        found.append(f"resampled from {source_rate / 1000:g} kHz")
    if channels > 1:
        there = "stereo" if channels == 2 else f"{channels} channels"
        found.append(f"mixed from {there}" if channel is None else f"channel {channel} of {there}")
    return tuple(found)


def missing_channel_reason(channel: str | int, channels: int) -> str:
    """Return why a recording of so many channels does not have this one."""
    there = (
        "it is mono, and its only channel is 0" if channels == 1 else f"its {channels} channels are 0 to {channels - 1}"
    )
    number = channel_number(channel)
    return f"has no channel {channel}{f' ({number})' if str(channel) in NAMED else ''}: {there}"
