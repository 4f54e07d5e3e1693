"""What makes the samples of a recording useless or suspicious: silence, clipping, an offset, cancelling channels.

A recording with such samples is used, and flagged. The thresholds are such that speech as it is recorded, by telephone
or microphone, quiet or normalised to full scale, is not flagged.
"""

from collections.abc import Iterator

import numpy as np

# Decoders and resamplers overshoot full scale a little; a peak above this means that the samples have another scale.
LOUD_THRESHOLD = 2.0
# Peak without the offset, of full scale: −60 dB, or 33 steps of 16 bits. The quietest speech is 20 dB louder.
SILENCE_THRESHOLD = 1e-3
# Absolute mean, of full scale and of the standard deviation. A cheap microphone has an offset of 0.01.
OFFSET_THRESHOLD, RELATIVE_OFFSET_THRESHOLD = 0.01, 0.25
# Share of the samples that are clipped: in runs of 3 or more at the highest or the lowest value of their channel if
# that is at least −20 dB, or at full scale or beyond, where a codec with loss has rounded the runs.
CLIPPED_THRESHOLD, MIN_CLIPPED_SAMPLES = 1e-3, 10
CLIPPING_LEVEL, FULL_SCALE = 0.1, 1 - 2**-15
# Power of the mean, relative to that of the mean of as many independent channels: −10 dB. Two microphones in a room are
# far above it; it is 0 for a signal and its inverse. Channels below this root mean square are silent anyway.
CANCELLED_THRESHOLD, MIN_CHANNEL_RMS = 0.1, 1e-4


class SignalChecks:
    """Statistics of the samples of a file, block by block, before resampling smooths its peaks.

    Attributes:
        high: The largest sample so far, without its sign.
    """

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")
        self._samples, self._sum, self._squares = 0, 0.0, 0.0
        self._channel_squares = np.zeros(0)
        self._clipping: list[_Clipping] = []

    @property
    def peak(self) -> float:
        """The largest absolute value."""
        return max(-self.low, self.high)

    def include(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Add a block of finite samples.

        Args:
            block: float32 [frames, channels], the channels that are used.
            mono: float32 [frames], their mean.
        """
        channels = block.T
        self.low, self.high = min(self.low, float(mono.min())), max(self.high, float(mono.max()))
        self._samples += len(mono)
        self._sum += float(mono.sum(dtype=np.float64))
        self._squares += _power(mono)
        if not self._clipping:
            self._clipping = [_Clipping() for _ in channels]
            self._channel_squares = np.zeros(len(channels))
        for number, samples in enumerate(channels):
            samples = np.ascontiguousarray(samples)
            self._clipping[number].include(samples)
            if len(channels) > 1:
                self._channel_squares[number] += _power(samples)

    def warnings(self) -> Iterator[str]:
        """Yield warnings about unusual samples."""
        if self._samples == 0:
            return
        if self.low == self.high:
            yield "all zeros" if self.low == 0 else "constant"
        else:
            yield from self._level_warnings()
        cancelled = self._cancelled()
        if cancelled is not None:
            yield f"channels that cancel ({cancelled})"
        if self.peak > LOUD_THRESHOLD:
            yield f"louder than full scale ({self.peak:.3g} ×)"
        else:
            clipped = max(clipping.samples for clipping in self._clipping)
            if clipped >= max(MIN_CLIPPED_SAMPLES, CLIPPED_THRESHOLD * self._samples) and self.low != self.high:
                yield f"clipped ({clipped / self._samples:.1%} of the samples)"

    def _level_warnings(self) -> Iterator[str]:
        mean = self._sum / self._samples
        deviation = max(0.0, self._squares / self._samples - mean**2) ** 0.5
        swing = max(self.high - mean, mean - self.low)
        if swing < SILENCE_THRESHOLD:
            yield f"almost silent (its peak is at {20 * np.log10(swing):.0f} dB)"
        if abs(mean) >= OFFSET_THRESHOLD and abs(mean) >= RELATIVE_OFFSET_THRESHOLD * deviation:
            yield f"offset (its mean is {mean:.3f} of full scale)"

    def _cancelled(self) -> str | None:
        """Return how much quieter the mean is than its channels, in words; None where they do not cancel."""
        channels = len(self._channel_squares)
        powers = self._channel_squares / self._samples
        if channels < 2 or powers.max() < MIN_CHANNEL_RMS**2:
            return None
        expected, found = powers.sum() / channels**2, self._squares / self._samples
        if found >= CANCELLED_THRESHOLD * expected:
            return None
        loudest = powers.max()
        if found <= loudest * 1e-12:
            return "nothing of them is left in their mean"
        return f"their mean is {10 * np.log10(loudest / found):.0f} dB quieter"


class _Clipping:
    """Counts the clipped samples of a channel."""

    def __init__(self) -> None:
        self._highest, self._lowest = CLIPPING_LEVEL, -CLIPPING_LEVEL
        self._at_highest = self._at_lowest = self._beyond = 0

    @property
    def samples(self) -> int:
        return max(self._at_highest + self._at_lowest, self._beyond)

    def include(self, samples: np.ndarray) -> None:
        """Add the next samples of the channel, float32 [samples]."""
        high, low = float(samples.max()), float(samples.min())
        if high > self._highest:
            self._highest, self._at_highest = high, 0
        if low < self._lowest:
            self._lowest, self._at_lowest = low, 0
        if high == self._highest:
            self._at_highest += _in_runs(samples == high)
        if low == self._lowest:
            self._at_lowest += _in_runs(samples == low)
        if max(high, -low) >= FULL_SCALE:
            self._beyond += int(np.count_nonzero(np.abs(samples) >= FULL_SCALE))


def _in_runs(chosen: np.ndarray) -> int:
    """Return how many True values, bool [samples], are in runs of three or more."""
    if len(chosen) < 3 or np.count_nonzero(chosen) < 3:
        return 0
    middle = chosen[1:-1] & chosen[:-2] & chosen[2:]
    inside = np.zeros(len(chosen), bool)
    inside[1:-1] |= middle
    inside[:-2] |= middle
    inside[2:] |= middle
    return int(np.count_nonzero(inside))


def _power(samples: np.ndarray) -> float:
    """Return the sum of squares of float32 [samples]."""
    exact = samples.astype(np.float64)
    return float(np.dot(exact, exact))
