"""Audio files decoded block by block: by libsndfile, or by FFmpeg (the extra `av`) where libsndfile cannot."""

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from w2v_attn.audio.integrity.flac import find_flac_contradiction, read_flac_header
from w2v_attn.audio.integrity.mp3 import mp3_warnings
from w2v_attn.audio.integrity.ogg import find_ogg_damage
from w2v_attn.audio.integrity.truncation import find_truncation, sphere_warnings
from w2v_attn.audio.integrity.wav import is_uncompressed_wav, wav_warnings

BLOCK_SAMPLES = 1 << 20
# A good MP3 may hold slightly fewer samples than its header states: a frame of padding, the decoder's delay, and the
# share by which an estimated length may be wrong.
MP3_SLACK_FRAMES, MP3_SLACK = 1152 + 529, 0.002

# libsndfile reports more frames than this for a FLAC that does not state its length.
UNKNOWN_FRAMES = 1 << 40

# libsndfile's formats without compression: the position of a frame can be computed.
SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"})

# Byte offset -> the magic numbers of containers that FFmpeg reads.
FFMPEG_MAGIC = {4: (b"ftyp",), 0: (b"\x1aE\xdf\xa3", b"\xff\xf1", b"\xff\xf9", b"0&\xb2u", b"#!AMR", b"FLV")}


class AudioError(ValueError):
    """The error of a recording that cannot be used. The text completes a sentence that begins with its path."""


class AudioSource(ABC):
    """An open recording.

    Attributes:
        rate: Sample rate in Hz.
        channels: Number of channels of each block.
    """

    rate: int
    channels: int

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of float32 [frames, channels] to the end of the file."""

    def skip(self, frames: int) -> int:
        """Seek past up to `frames` frames before the first block is read; return how many were skipped."""
        return 0

    @property
    @abstractmethod
    def header_duration(self) -> float | None:
        """Seconds that the header states; None where it does not."""

    @abstractmethod
    def check_complete(self) -> list[str]:
        """Return warnings about the file, after its last block was read.

        Raises:
            AudioError: samples are missing or damaged.
        """


@contextmanager
def open_source(path: Path) -> Iterator[AudioSource]:
    """Open the recording at `path`. Its content decides the decoder, not its extension.

    Raises:
        AudioError: the file cannot be opened, is damaged, or has a format that no decoder supports.
    """
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            # Reading a pipe without a writer blocks, and a device may have no end.
            raise AudioError("is a pipe, a socket or a device: expected a file")
        # Unbuffered: libsndfile reads through the same descriptor, which would invalidate the position of a buffer.
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror or error}") from error
    with file:
        try:
            start = file.read(32)
        except OSError as error:  # a directory, a device that fails
            raise AudioError(f"cannot be read: {error.strerror or error}") from error
        if not start:
            raise AudioError("is empty (0 bytes)")
        try:
            truncation, contradiction = find_truncation(file), find_flac_contradiction(file)
        except (OSError, OverflowError) as error:  # impossible lengths
            raise AudioError("is damaged: its header contains impossible lengths") from error
        if truncation is not None:
            raise AudioError(f"is truncated: {truncation}")
        if contradiction is not None:
            raise AudioError(f"is damaged: {contradiction}")
        try:
            yield from _opened_by_soundfile(file)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"is damaged: {_reason(error)}") from error


def _opened_by_soundfile(file: Any) -> Iterator[AudioSource]:
    # Opened by descriptor, so that the content decides and not the name. `open_source` closes it.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        sound = soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError as error:
        yield from _opened_by_ffmpeg(file, error)
        return
    with sound:
        yield _SoundFileSource(sound, file)


class _SoundFileSource(AudioSource):
    def __init__(self, sound: soundfile.SoundFile, file: Any):
        self.rate, self.channels = sound.samplerate, sound.channels
        self._sound, self._file = sound, file
        self._frames = 0
        self._flac_md5 = hashlib.md5(usedforsecurity=False) if sound.format == "FLAC" else None

    @property
    def header_duration(self) -> float | None:
        frames = self._sound.frames
        return frames / self.rate if 0 < frames < UNKNOWN_FRAMES else None

    def skip(self, frames: int) -> int:
        if self._sound.format not in SEEKABLE or not 0 < frames < self._sound.frames:
            return 0
        self._sound.seek(frames)
        return frames

    def blocks(self) -> Iterator[np.ndarray]:
        # soundfile seeks after every read of a seekable file. Seeking fails in a FLAC with a wrong length, reading does
        # not.
        self._sound.seekable = lambda: False
        size = max(1, BLOCK_SAMPLES // self.channels)
        while True:
            block = self._read(size)
            if len(block) == 0:
                return
            self._frames += len(block)
            yield block

    def _read(self, size: int) -> np.ndarray:
        if self._flac_md5 is None:
            return self._sound.read(size, dtype="float32", always_2d=True)
        block: Any = self._sound.read(size, dtype="int32", always_2d=True)
        bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[self._sound.subtype]
        samples = (block >> (32 - bits)).astype("<i4")
        as_bytes = samples.view(np.uint8).reshape(*samples.shape, 4)[..., : bits // 8]
        self._flac_md5.update(as_bytes.tobytes())
        return samples.astype(np.float32) / np.float32(1 << (bits - 1))

    def check_complete(self) -> list[str]:
        if self._flac_md5 is not None:
            return self._check_flac(self._flac_md5.digest())
        stated, found = self._sound.frames, self._frames
        slack = max(MP3_SLACK_FRAMES, MP3_SLACK * stated) if self._sound.format == "MP3" else 0
        if found < stated - slack:
            raise AudioError(f"is truncated: its header states {stated} samples, the file holds {found}")
        return _content_warnings(self._file, found, self.rate, is_mp3=self._sound.format == "MP3")

    def _check_flac(self, digest: bytes) -> list[str]:
        found = self._frames
        with _reopened(self._file) as file:
            header = read_flac_header(file)
        checksum, stated = (header.checksum, header.samples) if header is not None else (None, 0)
        if checksum is not None and checksum != digest:
            raise AudioError("is damaged: its samples do not match the checksum in its header")
        if stated and stated != found:
            if checksum is None:
                raise AudioError(f"is truncated: its header states {stated} samples, the file holds {found}")
            return [f"header claims {stated} samples, the file holds {found}"]
        return [] if stated else ["header does not state the length"]


def _reopened(file: Any) -> BinaryIO:
    """Open the same file once more by its descriptor: its name may belong to another file by now."""
    return open(os.dup(file.fileno()), "rb")


def _content_warnings(opened: Any, frames: int, rate: int, *, is_mp3: bool) -> list[str]:
    """Return warnings about damage that decoders skip silently.

    Args:
        opened: The file.
        frames: Number of frames that were decoded.
        rate: Sample rate in Hz.
        is_mp3: Whether the file is an MP3.

    Raises:
        AudioError: pages of an Ogg are damaged or missing.
    """
    with _reopened(opened) as file:
        if (damage := find_ogg_damage(file)) is not None:
            raise AudioError(damage)
        if is_mp3:
            return mp3_warnings(file, frames)
        return wav_warnings(file, frames, rate) + sphere_warnings(file, frames)


def _opened_by_ffmpeg(file: Any, refusal: Exception) -> Iterator[AudioSource]:
    # FFmpeg decodes what it can of a damaged FLAC or WAV, without a warning: refuse them.
    if read_flac_header(file) is not None or is_uncompressed_wav(file):
        raise AudioError(f"is damaged: {_reason(refusal)}") from refusal
    file.seek(0)
    start = file.read(32)
    known = any(start[at:].startswith(magic) for at, magics in FFMPEG_MAGIC.items() for magic in magics)
    try:
        import av
        import av.error
    except ImportError:
        if known:
            raise AudioError(
                "has a format that needs FFmpeg (m4a, mp4, webm, …): pip install 'w2v_attn[av]'"
            ) from refusal
        raise AudioError(f"is not audio that libsndfile supports: {_reason(refusal)}") from refusal
    file.seek(0)
    # Titles may have any encoding. Since version 19 PyAV accepts them without this option.
    titles: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(file, **titles) as container:
            if not container.streams.audio:
                raise AudioError("has no audio track")
            yield _FFmpegSource(container, file)
    except (av.error.FFmpegError, OSError) as error:
        if known:
            raise AudioError(f"is damaged: FFmpeg says {error.strerror}") from error
        raise AudioError(f"is not audio that libsndfile or FFmpeg supports: {_reason(refusal)}") from error


class _FFmpegSource(AudioSource):
    def __init__(self, container: Any, file: Any):
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or not codec.sample_rate or not codec.channels:
            raise AudioError("has an audio track for which FFmpeg has no decoder")
        self.rate, self.channels = codec.sample_rate, codec.channels
        codec.thread_count = 1  # files are decoded in parallel
        self._container, self._stream, self._file = container, stream, file
        self._frames = 0

    @property
    def header_duration(self) -> float | None:
        duration = self._stream.duration
        return None if duration is None else float(duration * self._stream.time_base)

    def blocks(self) -> Iterator[np.ndarray]:
        import av

        # float32 with interleaved channels: in planar formats PyAV reads out of bounds beyond the eighth channel.
        interleaved = av.AudioResampler(format="flt")
        for decoded in self._container.decode(self._stream):
            if decoded.layout.nb_channels != self.channels or decoded.sample_rate != self.rate:
                raise AudioError("is damaged: its sample rate or its number of channels changes within the file")
            for frame in interleaved.resample(decoded):
                block = frame.to_ndarray().reshape(-1, self.channels)
                self._frames += len(block)
                yield block.astype(np.float32, copy=False)

    def check_complete(self) -> list[str]:
        stated, found = self.header_duration, self._frames / self.rate
        is_mp3 = self._stream.codec_context.name.startswith("mp3")
        warnings = _content_warnings(self._file, self._frames, self.rate, is_mp3=is_mp3)
        if stated is None:
            return warnings
        if found < 0.98 * stated - 0.2:
            raise AudioError(f"is truncated: its header states {stated:.2f} seconds, the file holds {found:.2f}")
        if found > 1.02 * stated + 0.2 and not is_mp3:  # an MP3's duration is estimated
            warnings.append(f"longer than its header says ({found:.2f} seconds, not {stated:.2f})")
        return warnings


def _reason(error: Exception) -> str:
    text = str(error)
    # "Error opening 3: Format not recognised.": the number is a file descriptor, which means nothing to the user.
    text = text.split(": ", 1)[1] if text.startswith("Error opening") and ": " in text else text
    return text.removeprefix("Error : ").rstrip(". ").lower()
