"""What a model says of labelled recordings, beside what it should say."""

from dataclasses import dataclass

from w2v_attn.corpus.rows import Row
from w2v_attn.transcription.recognizer import Label, Transcript


@dataclass(frozen=True)
class Prediction:
    """What a model says of one labelled recording. loss: of this recording alone; None where it has none."""

    row: Row
    reference: str
    hypothesis: str
    found: Transcript | Label
    loss: float | None = None
