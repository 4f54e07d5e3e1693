"""What recognisers return: the text with its words, labels, values, spans or an embedding of a recording."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# Digits that a float32 has: values are written as the model computes them.
FLOAT32_DIGITS = 7


class Recognition(Protocol):
    """The output of a recogniser.

    Attributes:
        score: Its probability, 0 to 1; None where a single number would say nothing.
    """

    @property
    def score(self) -> float | None: ...

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object."""
        ...

    def as_text(self) -> str:
        """Return the content of a .txt file, without the end of its last line."""
        ...


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

    def as_text(self) -> str:
        """Return the text."""
        return self.text


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

    def as_text(self) -> str:
        """Return the label."""
        return self.label


@dataclass(frozen=True)
class Labels:
    """The classes of a recording that several classes may describe.

    Attributes:
        labels: The classes whose probability is above the threshold, the most probable first.
        scores: The probability of every class.
    """

    labels: tuple[str, ...]
    scores: dict[str, float]

    score = None

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with labels, and the scores of all classes."""
        return {"labels": list(self.labels), "scores": {name: significant(p) for name, p in self.scores.items()}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Labels":
        """Return the labels of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        return cls(tuple(record["labels"]), dict(record["scores"]))

    def as_text(self) -> str:
        """Return a line for each label."""
        return "\n".join(self.labels)


@dataclass(frozen=True)
class Values:
    """The values of a regression, such as the dimensions of an emotion or the quality of speech.

    Attributes:
        values: Name -> value, as the model computes it.
    """

    values: dict[str, float]

    score = None

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with the values."""
        return {"values": {name: significant(value) for name, value in self.values.items()}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Values":
        """Return the values of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        return cls(dict(record["values"]))

    def as_text(self) -> str:
        """Return a line for each value, with its name."""
        return "\n".join(f"{name} {value:.4f}" for name, value in self.values.items())


@dataclass(frozen=True)
class Span:
    """A part of a recording with the same label.

    Attributes:
        start: Seconds.
        end: Seconds.
        label: The class.
        score: Its probability on average over the frames, 0 to 1.
    """

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class Spans:
    """The labels of the frames of a recording: speakers, voice activity, phones.

    Attributes:
        spans: Ordered by start; spans of different labels may overlap.
    """

    spans: tuple[Span, ...]

    score = None

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with the spans, times in seconds."""
        spans = [{"start": s.start, "end": s.end, "label": s.label, "score": s.score} for s in self.spans]
        return {"spans": spans}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Spans":
        """Return the spans of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        return cls(tuple(Span(s["start"], s["end"], s["label"], s["score"]) for s in record["spans"]))

    def as_text(self) -> str:
        """Return a line for each span: start, end and label, with tabs between them, as Audacity reads labels."""
        return "\n".join(f"{span.start:.3f}\t{span.end:.3f}\t{span.label}" for span in self.spans)


@dataclass(frozen=True)
class FrameValues:
    """The values of a regression for each frame of a recording.

    Attributes:
        values: Name -> the value of each frame.
        frame_rate: Frames per second.
    """

    values: dict[str, list[float]]
    frame_rate: float

    score = None

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with the frame rate, and a list of values for each name."""
        values = {name: [significant(value) for value in frames] for name, frames in self.values.items()}
        return {"frame_rate": self.frame_rate, "values": values}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "FrameValues":
        """Return the values of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        return cls(dict(record["values"]), record["frame_rate"])

    def as_text(self) -> str:
        """Return a table with tabs between its columns: the middle of each frame in seconds, and its values."""
        lines = ["\t".join(["seconds", *self.values])]
        for number, frame in enumerate(zip(*self.values.values(), strict=True)):
            seconds = (number + 0.5) / self.frame_rate
            lines.append("\t".join([f"{seconds:.3f}", *(f"{value:.4f}" for value in frame)]))
        return "\n".join(lines)


@dataclass(frozen=True)
class Embedding:
    """The vector of a recording; recordings of one speaker have vectors with a high cosine similarity.

    Attributes:
        embedding: As the model computes it, not normalized.
    """

    embedding: tuple[float, ...]

    score = None

    def as_record(self) -> dict[str, Any]:
        """Return a JSON object with the vector."""
        return {"embedding": [significant(value) for value in self.embedding]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Embedding":
        """Return the embedding of a JSON object from `as_record`. Raises KeyError or TypeError for another one."""
        return cls(tuple(record["embedding"]))

    def as_text(self) -> str:
        """Return the vector on one line."""
        return " ".join(f"{significant(value)}" for value in self.embedding)


# The key that only the records of a class have. A frame rate is beside values for each frame.
_OF_KEY: dict[str, Callable[[Mapping[str, Any]], Recognition]] = {
    "text": Transcript.from_record,
    "label": Label.from_record,
    "labels": Labels.from_record,
    "spans": Spans.from_record,
    "frame_rate": FrameValues.from_record,
    "values": Values.from_record,
    "embedding": Embedding.from_record,
}


def output_of_record(record: Mapping[str, Any]) -> Any:
    """Return the output of a JSON object from `as_record`.

    Raises:
        ValueError: It has none of the keys that tell which output it is.
        KeyError, TypeError: It lacks others, or they hold something else.
    """
    of = next((of for key, of in _OF_KEY.items() if key in record), None)
    if of is None:
        keys = ", ".join(key for key in _OF_KEY if key != "frame_rate")
        raise ValueError(f"expected a record with one of {keys}, got {', '.join(map(str, record)) or 'an empty one'}")
    return of(record)


def significant(value: float) -> float:
    """Return a value with the digits of a float32."""
    return float(f"{value:.{FLOAT32_DIGITS}g}")
