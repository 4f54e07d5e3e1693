"""What decides what features are: a folder holds those of one fingerprint."""

from w2v_attn.checkpoints.checksum import checkpoint_hash
from w2v_attn.encoder.encoder import Encoder
from w2v_attn.encoder.long_form import LongForm
from w2v_attn.feature_files import FORMAT


def fingerprint_of(encoder: Encoder, wanted: tuple[str, ...]) -> dict[str, str]:
    """What decides what features are, beyond their last bits."""
    return {
        "format": FORMAT,
        "checkpoint": checkpoint_hash(encoder.checkpoint),
        "language": str(encoder.checkpoint.language),
        "layers": ",".join(wanted),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "long_form": _words(encoder.long_form),
    }


def _words(long_form: LongForm) -> str:
    overlap = f", {long_form.overlap:g} s of overlap" if long_form.kind == "chunked" else ""
    return long_form.kind if long_form.kind == "full" else f"{long_form.kind} of {long_form.seconds:g} s{overlap}"
