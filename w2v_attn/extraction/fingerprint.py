"""What decides what features are: a folder holds those of one fingerprint."""

from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.long import Long
from w2v_attn.feature_files import FORMAT
from w2v_attn.pretrained.identity import checkpoint_hash


def fingerprint_of(encoder: Encoder, wanted: tuple[str, ...]) -> dict[str, str]:
    """What decides what features are, beyond their last bits."""
    return {
        "format": FORMAT,
        "checkpoint": checkpoint_hash(encoder.checkpoint),
        "language": str(encoder.checkpoint.language),
        "layers": ",".join(wanted),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "long": _words(encoder.long),
    }


def _words(long: Long) -> str:
    overlap = f", {long.overlap:g} s of overlap" if long.kind == "chunks" else ""
    return long.kind if long.kind == "exact" else f"{long.kind} of {long.seconds:g} s{overlap}"
