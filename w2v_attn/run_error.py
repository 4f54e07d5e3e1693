"""Errors of runs: the one that ends a run, and the one of a recording, which the run reports and passes over.

The audio decoder and every kind of run raise them, so this module is below all of them.
"""

# The kinds of failures: `kind` in failures.jsonl. They are stable; the sentences beside them may change.
FAILURE_KINDS = {
    "missing": "there is no such file",
    "unreadable": "the file cannot be opened or read: permissions, a pipe, a disk that fails",
    "empty": "the file has 0 bytes",
    "not_audio": "no decoder recognises the file, or it has no audio track",
    "no_decoder": "audio in a format that needs the extra `av`, or for which FFmpeg has no decoder",
    "unsupported": "audio of a kind that is not read; the sentence says which",
    "no_samples": "a header without samples",
    "truncated": "fewer bytes or samples than the file's own header states",
    "damaged": "a wrong checksum, a missing page, or content that contradicts the header",
    "bad_rate": "a sample rate outside `audio_decoder.sample_rates`",
    "too_many_channels": "more channels than `audio_decoder.max_channels`",
    "no_channel": "the file does not have the channel that `channel` selects",
    "non_finite": "samples, or features, that are NaN or infinite",
    "too_short": "fewer samples than the model needs",
    "too_long": "longer than `max_duration`",
    "outside": "the segment is not inside the recording",
    "changed": "the file was changed while it was read",
    "decoder_crashed": "the subprocess that decoded the file died",
    "decoder_timeout": "the decoder gave no sample for `audio_decoder.timeout` seconds",
    "out_of_memory": "decoding or computing takes more memory than there is or is allowed",
    "bad_row": "the row of the list, or the member of the shard, cannot be used; the sentence says why",
    "no_text": "the row has no text or label to compare with",
    "no_segments": "`segments` has none for the recording",
    "out_of_range": "features beyond the range of `output_dtype`",
    "not_written": "the result cannot be written, such as under a name that is too long",
    "interrupted": "the run ended while the recording was read",
    "other": "anything else; the sentence says what",
}


class RunError(Exception):
    """The run cannot continue. What was written stays, and the same command resumes it."""


class RecordingError(ValueError):
    """The error of a recording that cannot be used. The text completes a sentence that begins with its path.

    Attributes:
        kind: One of FAILURE_KINDS.
    """

    kind: str = "other"

    def __init__(self, reason: str, *, kind: str | None = None):
        super().__init__(reason)
        if kind is not None:
            assert kind in FAILURE_KINDS, kind
            self.kind = kind


def failure_kind(error: Exception) -> str:
    """Return the kind of an error that concerns one recording."""
    return error.kind if isinstance(error, RecordingError) else "other"
