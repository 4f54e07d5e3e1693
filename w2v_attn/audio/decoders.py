"""Files decoded block by block: libsndfile first, FFmpeg (the extra `av`) for what libsndfile does not know."""

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

from w2v_attn.audio.integrity import flac, mp3, ogg, wav
from w2v_attn.audio.integrity.truncation import broken_promise, sphere_oddities

BLOCK_SAMPLES = 1 << 20
# A healthy MP3 may hold a little less than its header says: a frame of padding, the decoder's delay, an estimate.
MP3_SLACK_FRAMES, MP3_SLACK = 1152 + 529, 0.002

# What libsndfile says of a FLAC that does not state its length is beyond these.
UNKNOWN_FRAMES = 1 << 40

# Uncompressed: where a frame is can be computed.
SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"})

MAGIC_OF_FFMPEG = {4: (b"ftyp",), 0: (b"\x1aE\xdf\xa3", b"\xff\xf1", b"\xff\xf9", b"0&\xb2u", b"#!AMR", b"FLV")}


class AudioError(ValueError):
    """A recording cannot be used. The text says why, as the end of a sentence that begins with its path."""


class Source(ABC):
    """An open recording. rate: Hz; channels: how many each block has."""

    rate: int
    channels: int

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """float32 [frames, channels], one after the other, to the end of the file."""

    def skip(self, frames: int) -> int:
        """Before the first block: goes past as many of the first `frames` as it can at once -> how many that were."""
        return 0

    @property
    @abstractmethod
    def promised(self) -> float | None:
        """Seconds that the header promises; None where it does not say."""

    @abstractmethod
    def check_complete(self) -> list[str]:
        """After the last block: what is odd, in words. Raises AudioError where samples are missing or damaged."""


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The recording at `path`, whatever its name ends in.

    Raises:
        AudioError: it cannot be opened, or is nothing that the decoders know.
    """
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            # A pipe that nobody writes to would be waited for, and a device may have no end.
            raise AudioError("is a pipe, a socket or a device: expected a file")
        # Unbuffered: libsndfile reads through the same descriptor, and a buffer would not know where it is then.
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
            broken, contradiction = broken_promise(file), flac.contradiction(file)
        except (OSError, OverflowError) as error:  # lengths that lead nowhere
            raise AudioError("is damaged: its header does not hold together") from error
        if broken is not None:
            raise AudioError(f"is cut short: {broken}")
        if contradiction is not None:
            raise AudioError(f"is damaged: {contradiction}")
        try:
            yield from _opened_by_soundfile(file)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"is damaged: {_sentence(error)}") from error


def _opened_by_soundfile(file: Any) -> Iterator[Source]:
    # By descriptor, so that the content decides and not the name. It is ours to close.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        sound = soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError as error:
        yield from _opened_by_ffmpeg(file, error)
        return
    with sound:
        yield _SoundFileSource(sound, file)


class _SoundFileSource(Source):
    def __init__(self, sound: soundfile.SoundFile, file: Any):
        self.rate, self.channels = sound.samplerate, sound.channels
        self._sound, self._file = sound, file
        self._frames = 0
        self._flac_md5 = hashlib.md5(usedforsecurity=False) if sound.format == "FLAC" else None

    @property
    def promised(self) -> float | None:
        frames = self._sound.frames
        return frames / self.rate if 0 < frames < UNKNOWN_FRAMES else None

    def skip(self, frames: int) -> int:
        if self._sound.format not in SEEKABLE or not 0 < frames < self._sound.frames:
            return 0
        self._sound.seek(frames)
        return frames

    def blocks(self) -> Iterator[np.ndarray]:
        # soundfile seeks after every read of a seekable file. A FLAC that is wrong about its length cannot be sought
        # in, but it can be read.
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
        promised, found = self._sound.frames, self._frames
        slack = max(MP3_SLACK_FRAMES, MP3_SLACK * promised) if self._sound.format == "MP3" else 0
        if found < promised - slack:
            raise AudioError(f"is cut short: its header promises {promised} samples, it holds {found}")
        return _oddities_of_content(self._file, found, self.rate, is_mp3=self._sound.format == "MP3")

    def _check_flac(self, digest: bytes) -> list[str]:
        found = self._frames
        with _again(self._file) as file:
            header = flac.stated(file)
        checksum, claimed = (header.checksum, header.samples) if header is not None else (None, 0)
        if checksum is not None and checksum != digest:
            raise AudioError("is damaged: its samples do not have the checksum that its header states")
        if claimed and claimed != found:
            if checksum is None:
                raise AudioError(f"is cut short: its header promises {claimed} samples, it holds {found}")
            return [f"header claims {claimed} samples, the file holds {found}"]
        return [] if claimed else ["header does not state the length"]


def _again(file: Any) -> BinaryIO:
    """The same file, wherever its name leads now, to be read anew."""
    return open(os.dup(file.fileno()), "rb")


def _oddities_of_content(opened: Any, frames: int, rate: int, *, is_mp3: bool) -> list[str]:
    """What decoders do not say of containers that they pass over damage in. Raises AudioError where there is some.

    frames: that were decoded.
    """
    with _again(opened) as file:
        if (fault := ogg.fault(file)) is not None:
            raise AudioError(fault)
        if is_mp3:
            return mp3.oddities(file, frames)
        return wav.oddities(file, frames, rate) + sphere_oddities(file, frames)


def _opened_by_ffmpeg(file: Any, refusal: Exception) -> Iterator[Source]:
    # It reads damaged ones of these, as good as it can, and says nothing.
    if flac.stated(file) is not None or wav.is_uncompressed(file):
        raise AudioError(f"is damaged: {_sentence(refusal)}") from refusal
    file.seek(0)
    start = file.read(32)
    known = any(start[at:].startswith(magic) for at, magics in MAGIC_OF_FFMPEG.items() for magic in magics)
    try:
        import av
        import av.error
    except ImportError:
        if known:
            raise AudioError(
                "is of a kind that needs FFmpeg (m4a, mp4, webm, …): pip install 'w2v_attn[av]'"
            ) from refusal
        raise AudioError(f"is not audio that libsndfile knows: {_sentence(refusal)}") from refusal
    file.seek(0)
    # Titles of any letters. From version 19 on they are taken as they are, and `open` is not told.
    titles: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(file, **titles) as container:
            if not container.streams.audio:
                raise AudioError("has no audio track")
            yield _FFmpegSource(container, file)
    except (av.error.FFmpegError, OSError) as error:
        if known:
            raise AudioError(f"is damaged: FFmpeg says {error.strerror}") from error
        raise AudioError(f"is not audio that libsndfile or FFmpeg know: {_sentence(refusal)}") from error


class _FFmpegSource(Source):
    def __init__(self, container: Any, file: Any):
        stream = container.streams.audio[0]
        codec = stream.codec_context
        if codec is None or not codec.sample_rate or not codec.channels:
            raise AudioError("has an audio track that FFmpeg has no decoder for")
        self.rate, self.channels = codec.sample_rate, codec.channels
        codec.thread_count = 1  # files are decoded side by side
        self._container, self._stream, self._file = container, stream, file
        self._frames = 0

    @property
    def promised(self) -> float | None:
        duration = self._stream.duration
        return None if duration is None else float(duration * self._stream.time_base)

    def blocks(self) -> Iterator[np.ndarray]:
        import av

        # The samples as float32, channels side by side: with a plane for each channel, PyAV reads beyond the eighth.
        packed = av.AudioResampler(format="flt")
        for decoded in self._container.decode(self._stream):
            if decoded.layout.nb_channels != self.channels or decoded.sample_rate != self.rate:
                raise AudioError("is damaged: its rate or its number of channels changes on the way")
            for frame in packed.resample(decoded):
                block = frame.to_ndarray().reshape(-1, self.channels)
                self._frames += len(block)
                yield block.astype(np.float32, copy=False)

    def check_complete(self) -> list[str]:
        promised, found = self.promised, self._frames / self.rate
        is_mp3 = self._stream.codec_context.name.startswith("mp3")
        odd = _oddities_of_content(self._file, self._frames, self.rate, is_mp3=is_mp3)
        if promised is None:
            return odd
        if found < 0.98 * promised - 0.2:
            raise AudioError(f"is cut short: its header promises {promised:.2f} seconds, it holds {found:.2f}")
        if found > 1.02 * promised + 0.2 and not is_mp3:  # of which it is a guess
            odd.append(f"longer than its header says ({found:.2f} seconds, not {promised:.2f})")
        return odd


def _sentence(error: Exception) -> str:
    text = str(error)
    # "Error opening 3: Format not recognised.": the number is a file descriptor, of no use to anybody.
    text = text.split(": ", 1)[1] if text.startswith("Error opening") and ": " in text else text
    return text.removeprefix("Error : ").rstrip(". ").lower()
