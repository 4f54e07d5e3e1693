"""The recogniser of classification heads, which gives each recording a label."""

from torch import Tensor

from w2v_attn.transcription.outputs import Label
from w2v_attn.transcription.recognizer import Recognizer


class Classifier(Recognizer):
    """A recogniser that gives each recording one label."""

    def describe_decoding(self) -> dict[str, str]:
        """See `Recognizer`."""
        return {"labels": ", ".join(str(label) for _, label in sorted(self.config.id2label.items()))}

    def decode(self, log_probabilities: Tensor) -> Label:
        """Return the most probable label and the scores of the five most probable ones."""
        probabilities = log_probabilities.exp()
        names = self.config.id2label
        likeliest = probabilities.topk(min(5, len(probabilities)))
        scores = {
            names[i]: round(p, 4) for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        }
        label = next(iter(scores))
        return Label(label, scores[label], scores)
