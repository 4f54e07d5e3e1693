"""A second reader of WAV, to hold the first one against: PCM, float, A-law and µ-law, in samples of whole bytes."""

import struct

import numpy as np


def read_wav(content: bytes) -> tuple[int, np.ndarray] | None:
    """(Hz, samples [frames, channels] in ±1); None where it makes no sense of it."""
    order = {b"RIFF": "<", b"RIFX": ">"}.get(content[:4])
    if order is None or content[8:12] != b"WAVE":
        return None
    at, form = 12, None
    while at + 8 <= len(content):
        name, length = content[at : at + 4], struct.unpack(f"{order}I", content[at + 4 : at + 8])[0]
        body = content[at + 8 : at + 8 + length]
        if name == b"fmt " and len(body) >= 16:
            form = [*struct.unpack(f"{order}HHIIHH", body[:16])]
            if form[0] == 0xFFFE and len(body) >= 26:  # extensible: the true format begins the GUID
                form[0] = struct.unpack(f"{order}H", body[24:26])[0]
        if name == b"data" and form is not None:
            return _samples(body, form, order)
        at += 8 + length + length % 2
    return None


def _samples(body: bytes, form: list[int], order: str) -> tuple[int, np.ndarray] | None:
    code, channels, rate, _, block, bits = form
    width = (bits + 7) // 8
    if channels == 0 or block != channels * width:
        return None
    body = body[: len(body) // block * block]
    if (code, bits) in ((3, 32), (3, 64)):
        flat = np.frombuffer(body, f"{order}f{width}").astype(np.float64)
    elif code == 7 and bits == 8:
        inverse = ~np.frombuffer(body, np.uint8)
        size = (((inverse & 15).astype(int) << 3) + 132 << ((inverse >> 4) & 7)) - 132
        flat = np.where(inverse & 128, -size, size) / 32768
    elif code == 6 and bits == 8:
        coded = np.frombuffer(body, np.uint8).astype(int) ^ 0x55
        step, segment = coded & 15, coded >> 4 & 7
        size = np.where(segment == 0, (step << 4) + 8, (step << 4) + 264 << np.maximum(segment, 1) - 1)
        flat = np.where(coded & 128, size, -size) / 32768
    elif code == 1 and bits == 8:
        flat = (np.frombuffer(body, np.uint8).astype(float) - 128) / 128
    elif code == 1 and bits in (16, 24, 32):
        raw = np.frombuffer(body, np.uint8).reshape(-1, width)
        raw = raw[:, ::-1] if order == "<" else raw
        full = np.zeros((len(raw), 4), np.uint8)
        full[:, :width] = raw
        flat = full.view(">i4")[:, 0] / 2**31
    else:
        return None
    return rate, flat.reshape(-1, channels)
