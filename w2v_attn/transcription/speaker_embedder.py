"""The recogniser of x-vector heads, which gives each recording an embedding of its speaker."""

from torch import Tensor

from w2v_attn.transcription.outputs import Embedding
from w2v_attn.transcription.recognizer import Recognizer


class SpeakerEmbedder(Recognizer):
    """A recogniser that gives each recording the embedding of an x-vector head.

    Source: D. Snyder et al., "X-Vectors: Robust DNN Embeddings for Speaker Recognition", section 2.1.
    """

    has_times = False

    def describe_decoding(self) -> dict[str, str]:
        """See `Recognizer`."""
        return {}

    def outputs(self, waveform: Tensor) -> Tensor:
        """Return the embedding, float32 [channels].

        Raises:
            ValueError: the waveform is too short for the dilated convolutions of the head.
        """
        return self._run(waveform).embeddings[0].float().cpu()

    def check_waveform(self, waveform: Tensor) -> None:
        """See `WaveformModel`; the head needs more frames than the encoder."""
        super().check_waveform(waveform)
        frames = self.count_frames(len(waveform))
        if frames < self._min_frames():
            raise ValueError(
                f"is too short: {frames} frames, and the convolutions of the x-vector head need {self._min_frames()} "
                f"({self._min_frames() / self.frame_rate():.2f} s)"
            )

    def _min_frames(self) -> int:
        """Return the frames that the head needs: its receptive field, and one more for a standard deviation."""
        config = self.config
        reach = sum((k - 1) * d for k, d in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True))
        return reach + 2

    def decode(self, outputs: Tensor) -> Embedding:
        """Return the embedding for the output of the head, float32 [channels]."""
        return Embedding(tuple(outputs.tolist()))
