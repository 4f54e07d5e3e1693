"""Audio files decoded block by block: by libsndfile, or by FFmpeg (the extra `av`) where libsndfile cannot."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from w2v_attn.audio.audio_source import AudioError as AudioError
from w2v_attn.audio.audio_source import AudioSource
from w2v_attn.audio.ffmpeg_source import is_known_to_ffmpeg, opened_by_ffmpeg
from w2v_attn.audio.file_part import FilePart
from w2v_attn.audio.flac_check import FlacCheck
from w2v_attn.audio.integrity.content import content_warnings
from w2v_attn.audio.integrity.flac import find_flac_contradiction, read_flac_header
from w2v_attn.audio.integrity.ogg import find_ogg_links
from w2v_attn.audio.integrity.truncation import find_truncation
from w2v_attn.audio.repaired_headers import repaired, without_junk

BLOCK_SAMPLES = 1 << 20

# libsndfile reports more frames than this for a FLAC that does not state its length.
UNKNOWN_FRAMES = 1 << 40

MPEG_WAV_SLACK = 2 * 1152

# libsndfile's formats without compression: the position of a frame can be computed.
SEEKABLE = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"})


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
            raise AudioError("is a pipe, a socket or a device: expected a file", kind="unreadable")
        # Unbuffered: libsndfile reads through the same descriptor, which would invalidate the position of a buffer.
        file = path.open("rb", buffering=0)
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise AudioError(f"cannot be read: {error.strerror or error}", kind=kind) from error
    with file:
        try:
            start = file.read(32)
        except OSError as error:  # a directory, a device that fails
            raise AudioError(f"cannot be read: {error.strerror or error}", kind="unreadable") from error
        if not start:
            raise AudioError("is empty (0 bytes)", kind="empty")
        try:
            truncation, contradiction = find_truncation(file), find_flac_contradiction(file)
        except (OSError, OverflowError) as error:  # impossible lengths
            raise AudioError("is damaged: its header contains impossible lengths", kind="damaged") from error
        if truncation is not None:
            raise AudioError(f"is truncated: {truncation}", kind="truncated")
        if contradiction is not None:
            raise AudioError(f"is damaged: {contradiction}", kind="damaged")
        try:
            yield from _opened_by_soundfile(file)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"is damaged: {_reason(error)}", kind="damaged") from error


def _opened_by_soundfile(file: Any) -> Iterator[AudioSource]:
    # Opened by descriptor, so that the content decides and not the name. `open_source` closes it.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    try:
        part = repaired(file)
        sound = soundfile.SoundFile(file.fileno(), closefd=False) if part is None else _open_part(part)
    except soundfile.LibsndfileError as error:
        sound = _opened_mp3(file)
        if sound is None:
            yield from opened_by_ffmpeg(file, error, _reason(error))
            return
    with sound:
        yield _SoundFileSource(sound, file)


def _opened_mp3(file: Any) -> soundfile.SoundFile | None:
    """Open an MP3 that begins with junk; return None for other files."""
    part = None if is_known_to_ffmpeg(os.pread(file.fileno(), 16, 0)) else without_junk(file)
    try:
        return None if part is None else _open_part(part)
    except soundfile.LibsndfileError:
        return None


def _open_part(part: Any) -> soundfile.SoundFile:
    return soundfile.SoundFile(part)


class _SoundFileSource(AudioSource):
    def __init__(self, sound: soundfile.SoundFile, file: Any):
        self.rate, self.channels = sound.samplerate, sound.channels
        self._sound, self._file = sound, file
        self._frames = 0
        header = (
            read_flac_header(FilePart(file, 0, os.fstat(file.fileno()).st_size)) if sound.format == "FLAC" else None
        )
        self._flac = FlacCheck(header) if header is not None else None

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
        links = find_ogg_links(self._file) if self._sound.format == "OGG" else []
        if len(links) <= 1:
            yield from self._blocks_of(self._sound)
            return
        for start, end in links:  # libsndfile reads the first one only
            with _open_part(FilePart(self._file, start, end)) as sound:
                if (sound.samplerate, sound.channels) != (self.rate, self.channels):
                    raise AudioError(
                        f"holds recordings of {self.channels} × {self.rate} Hz and of {sound.channels} × "
                        f"{sound.samplerate} Hz one after the other: split them into separate files",
                        kind="unsupported",
                    )
                before = self._frames
                yield from self._blocks_of(sound)
                _check_frames(sound.frames, self._frames - before)

    def _blocks_of(self, sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
        # soundfile seeks after every read of a seekable file. Seeking fails in a FLAC with a wrong length, reading does
        # not.
        sound.seekable = lambda: False
        size = max(1, BLOCK_SAMPLES // self.channels)
        while True:
            block = self._read(sound, size)
            if len(block) == 0:
                return
            self._frames += len(block)
            yield block

    def _read(self, sound: soundfile.SoundFile, size: int) -> np.ndarray:
        if self._flac is None:
            return sound.read(size, dtype="float32", always_2d=True)
        return self._flac.include(sound.read(size, dtype="int32", always_2d=True))

    def check_complete(self) -> list[str]:
        if self._flac is not None:
            return self._flac.check()
        is_mp3 = self._sound.format == "MP3"
        if not is_mp3:  # of an MP3 without a count of its frames, libsndfile estimates the length
            # The number in a WAV with MPEG frames may include the padding of the first and the last one.
            slack = MPEG_WAV_SLACK if self._sound.subtype.startswith("MPEG") else 0
            _check_frames(self._sound.frames - slack, self._frames)
        return content_warnings(self._file, self._frames, self.rate, is_mp3=is_mp3)


def _check_frames(stated: int, found: int) -> None:
    """Raise AudioError if fewer frames were found than a header states."""
    if found < stated:
        raise AudioError(f"is truncated: its header states {stated} samples, the file holds {found}", kind="truncated")


def _reason(error: Exception) -> str:
    text = str(error)
    # "Error opening 3: Format not recognised.": the number is a file descriptor, which means nothing to the user.
    text = text.split(": ", 1)[1] if text.startswith("Error opening") and ": " in text else text
    return text.removeprefix("Error : ").rstrip(". ").lower()
