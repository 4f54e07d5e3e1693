"""What recognisers return: the text with its words and their times, or the label of a recording."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word with its time in the recording; a character or a phone where the text has no words.

    Attributes:
        word: The word.
        start: Seconds.
        end: Seconds.
        score: Probability of its symbols on average over its frames, 0 to 1.
        joiner: What the text has between the previous word and this one: a space, or nothing between characters.
    """

    word: str
    start: float
    end: float
    score: float
    joiner: str = " "


@dataclass(frozen=True)
class Transcript:
    """The text of a recording.

    Attributes:
        text: The words with their joiners; the first has none.
        score: Geometric mean over frames of the chosen symbol's probability, 0 to 1.
        words: The words with their times.
    """

    text: str
    score: float
    words: tuple[Word, ...]

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with text, score, and words with times in seconds; with joiners that are no spaces."""
        words = [
            {"word": w.word, "start": w.start, "end": w.end, "score": w.score}
            | ({} if w.joiner in (("", " ") if number == 0 else (" ",)) else {"joiner": w.joiner})
            for number, w in enumerate(self.words)
        ]
        return {"text": self.text, "score": self.score, "words": words}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Transcript":
        """Return the transcript of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        words = [
            Word(w["word"], w["start"], w["end"], w["score"], w.get("joiner", "" if number == 0 else " "))
            for number, w in enumerate(record["words"])
        ]
        return cls(record["text"], record["score"], tuple(words))


@dataclass(frozen=True)
class Label:
    """The class of a recording.

    Attributes:
        label: The most probable class.
        score: Its probability.
        scores: The five most probable classes: label -> probability.
    """

    label: str
    score: float
    scores: dict[str, float]

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with label, score, and the scores of the most probable labels."""
        return {"label": self.label, "score": self.score, "scores": self.scores}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Label":
        """Return the label of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        return cls(record["label"], record["score"], dict(record["scores"]))


def output_of_record(record: Mapping[str, Any]) -> Transcript | Label:
    """Return the output of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
    return Transcript.from_record(record) if "text" in record else Label.from_record(record)
