"""Audio files that libsndfile cannot read, decoded by FFmpeg (the extra `av`)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from w2v_attn.audio.audio_source import AudioError, AudioSource
from w2v_attn.audio.flac_check import FlacCheck
from w2v_attn.audio.integrity.content import content_warnings
from w2v_attn.audio.integrity.flac import read_flac_header
from w2v_attn.audio.integrity.wav import is_uncompressed_wav

# Byte offset -> the magic numbers of containers that FFmpeg reads.
FFMPEG_MAGIC = {4: (b"ftyp",), 0: (b"\x1aE\xdf\xa3", b"\xff\xf1", b"\xff\xf9", b"0&\xb2u", b"#!AMR", b"FLV")}

# Containers, by FFmpeg's names, whose own headers state a duration. Of others FFmpeg estimates it from the bit rate, or
# it includes what is buffered before playing (ASF) or the padding of the last packet (CAF).
STATED_DURATIONS = frozenset({"mov", "wv", "ape", "tta", "flac", "wav", "w64", "aiff", "voc", "ast"})
# A container may round its duration, and count the delay of its codec: a share, and seconds.
DURATION_TOLERANCE, MIN_DURATION_TOLERANCE = 0.02, 0.2

# Bits of a sample that libsndfile reads in a FLAC.
LIBSNDFILE_FLAC_BITS = (8, 16, 24)


def is_known_to_ffmpeg(start: bytes) -> bool:
    """Return whether a file begins like one of a format that FFmpeg reads and libsndfile does not."""
    return any(start[at:].startswith(magic) for at, magics in FFMPEG_MAGIC.items() for magic in magics)


def opened_by_ffmpeg(file: Any, refusal: Exception, reason: str) -> Iterator[AudioSource]:
    """Yield the recording of an open file.

    Args:
        file: The file.
        refusal: Why libsndfile cannot open it.
        reason: The same in words.

    Raises:
        AudioError: FFmpeg cannot read it either, is not installed, or would read a damaged file without a warning.
    """
    # FFmpeg decodes what it can of a damaged FLAC or WAV, without a warning: refuse them.
    header = read_flac_header(file)
    if (header is not None and header.format.bits in LIBSNDFILE_FLAC_BITS) or is_uncompressed_wav(file):
        raise AudioError(f"is damaged: {reason}", kind="damaged") from refusal
    file.seek(0)
    start = file.read(32)
    known = header is not None or is_known_to_ffmpeg(start)
    try:
        import av
        import av.error
    except ImportError:
        if known:
            raise AudioError(
                "has a format that needs FFmpeg (m4a, mp4, webm, …): pip install 'w2v_attn[av]'", kind="no_decoder"
            ) from refusal
        raise AudioError(f"is not audio that libsndfile supports: {reason}", kind="not_audio") from refusal
    file.seek(0)
    # Titles may have any encoding. Since version 19 PyAV accepts them without this option.
    titles: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(file, **titles) as container:
            if not container.streams.audio:
                raise AudioError("has no audio track", kind="not_audio")
            yield _FFmpegSource(container, file, None if header is None else FlacCheck(header))
    except (av.error.FFmpegError, OSError) as error:
        if known:
            raise AudioError(f"is damaged: FFmpeg says {error.strerror}", kind="damaged") from error
        raise AudioError(f"is not audio that libsndfile or FFmpeg supports: {reason}", kind="not_audio") from error


class _FFmpegSource(AudioSource):
    def __init__(self, container: Any, file: Any, flac: FlacCheck | None):
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or not codec.sample_rate or not codec.channels:
            raise AudioError("has an audio track for which FFmpeg has no decoder", kind="no_decoder")
        self.rate, self.channels = codec.sample_rate, codec.channels
        codec.thread_count = 1  # files are decoded in parallel
        self._container, self._stream, self._file = container, stream, file
        self._frames, self._flac = 0, flac

    @property
    def header_duration(self) -> float | None:
        duration = self._stream.duration
        return None if duration is None else float(duration * self._stream.time_base)

    @property
    def _states_duration(self) -> bool:
        return not STATED_DURATIONS.isdisjoint(self._container.format.name.split(","))

    def blocks(self) -> Iterator[np.ndarray]:
        import av

        # float32 with interleaved channels: in planar formats PyAV reads out of bounds beyond the eighth channel.
        interleaved = av.AudioResampler(format="flt" if self._flac is None else "s32")
        for decoded in self._container.decode(self._stream):
            if decoded.layout.nb_channels != self.channels or decoded.sample_rate != self.rate:
                raise AudioError(
                    "is damaged: its sample rate or its number of channels changes within the file", kind="damaged"
                )
            for frame in interleaved.resample(decoded):
                block = frame.to_ndarray().reshape(-1, self.channels)
                self._frames += len(block)
                yield block.astype(np.float32, copy=False) if self._flac is None else self._flac.include(block)

    def check_complete(self) -> list[str]:
        if self._flac is not None:
            return self._flac.check()
        is_mp3 = self._container.format.name == "mp3"  # and not frames of MP3 in another container
        warnings = content_warnings(self._file, self._frames, self.rate, is_mp3=is_mp3)
        stated, found = self.header_duration, self._frames / self.rate
        if stated is None or not self._states_duration:
            return warnings
        if found < (1 - DURATION_TOLERANCE) * stated - MIN_DURATION_TOLERANCE:
            raise AudioError(
                f"is truncated: its header states {stated:.2f} seconds, the file holds {found:.2f}", kind="truncated"
            )
        if found > (1 + DURATION_TOLERANCE) * stated + MIN_DURATION_TOLERANCE:
            warnings.append(f"longer than its header says ({found:.2f} seconds, not {stated:.2f})")
        return warnings
