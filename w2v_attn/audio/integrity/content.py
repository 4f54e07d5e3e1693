"""Warnings about damage that decoders skip silently, for a file that was decoded to its end."""

import os
from typing import Any, BinaryIO

from w2v_attn.audio.audio_source import AudioError
from w2v_attn.audio.integrity.mp3 import missing_mp3_samples, mp3_warnings
from w2v_attn.audio.integrity.ogg import find_ogg_damage
from w2v_attn.audio.integrity.truncation import sphere_warnings
from w2v_attn.audio.integrity.wav import wav_warnings


def content_warnings(opened: Any, frames: int, rate: int, *, is_mp3: bool) -> list[str]:
    """Return warnings about a file.

    Args:
        opened: The file.
        frames: Number of frames that were decoded.
        rate: Sample rate in Hz.
        is_mp3: Whether the file is an MP3.

    Raises:
        AudioError: pages of an Ogg are damaged or missing, or an MP3 has fewer samples than its header states.
    """
    with reopened(opened) as file:
        if (damage := find_ogg_damage(file)) is not None:
            raise AudioError(damage, kind="damaged")
        if not is_mp3:
            return wav_warnings(file, frames, rate) + sphere_warnings(file, frames)
        if (missing := missing_mp3_samples(file, frames)) is not None:
            raise AudioError(f"is truncated: {missing}", kind="truncated")
        return mp3_warnings(file, frames)


def reopened(opened: Any) -> BinaryIO:
    """Open the same file once more by its descriptor: its name may belong to another file by now."""
    return open(os.dup(opened.fileno()), "rb")
