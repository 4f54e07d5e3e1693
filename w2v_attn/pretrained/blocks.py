"""Hugging Face's attention blocks, computed by our layer: wav2vec 2.0's, WavLM's, and those of Conformers.

The instances were built by Hugging Face: `num_heads`, `dropout`, projections and what positions need are theirs.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from w2v_attn.attention.gate import Gate, from_openings
from w2v_attn.attention.layer import MultiHeadSelfAttention, is_plain
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import split_heads
from w2v_attn.attention.position import RelativePositions
from w2v_attn.attention.rotary import Rotate
from w2v_attn.pretrained.families import FAMILIES
from w2v_attn.pretrained.swapping import derived

OUR_ATTRIBUTES = ("input_size", "key_size", "value_size", "output_size", "scale", "backend")


class HuggingFaceAttention(MultiHeadSelfAttention):
    """The attention of wav2vec 2.0 and of the families that share it, with Hugging Face's arguments and results."""

    config: Any
    scaling: float

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | AttentionMask | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [B, T, C] and, only when asked for, the probabilities [B, H, T, T].

        attention_mask: as transformers makes it for any of its implementations: float [B, 1, T, T] of 0 and the lowest
            number, bool [B, 1, T, T] with True = attend, or [B, T] with 1 = a real frame.
        output_attentions: None asks the model's config.

        Raises:
            ValueError: states of another sequence to attend; this is self-attention.
        """
        if key_value_states is not None:
            raise ValueError(
                "w2v_attn computes self-attention, but this block was given the states of another sequence to attend "
                "(key_value_states): call restore_attention(model) to use it as cross-attention"
            )
        return self.attend(
            hidden_states, mask_from_transformers(attention_mask), return_scores=self._wants_scores(output_attentions)
        )

    def adopt(self, backend: str, config: Any) -> None:
        """Gives a block that was Hugging Face's what our layer has besides. config: of the model that it is in."""
        width = self.num_heads * self._head_size
        for name, value in zip(OUR_ATTRIBUTES, (width, width, width, width, self.scaling, backend), strict=True):
            setattr(self, name, value)

    def leave(self) -> None:
        """Takes it away again."""
        for name in OUR_ATTRIBUTES:
            delattr(self, name)

    @property
    def _head_size(self) -> int:
        return self.head_dim  # type: ignore[return-value]

    def _wants_scores(self, output_attentions: bool | None) -> bool:
        if output_attentions is None:
            return bool(getattr(self.config, "output_attentions", False))
        return output_attentions


class GatedAttention(HuggingFaceAttention):
    """WavLM's attention: scores get a bias by distance, times a gate of the query.

    The table of biases lives in the first block, which hands it on to the others. Stock hands on the biases of all
    pairs of frames, [B·H, T, T], and returns probabilities averaged over heads; here they are each head's own.
    """

    num_buckets: int
    max_distance: int
    gru_rel_pos_linear: nn.Linear
    gru_rel_pos_const: Tensor
    rel_attn_embed: nn.Embedding

    def adopt(self, backend: str, config: Any) -> None:
        """See `HuggingFaceAttention`."""
        super().adopt(backend, config)
        self.config = config  # stock's gives its weights whether they are asked for or not, and needs none

    def leave(self) -> None:
        """See `HuggingFaceAttention`."""
        super().leave()
        del self.config

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | AttentionMask | None = None,
        position_bias: Tensor | None = None,
        index: int = 0,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Hidden states [B, T, C], the probabilities [B, H, T, T] when asked for, and the table for the next block.

        position_bias: the table [H, R] that the block before returned; None in the first block.
        """
        table = self.table() if position_bias is None else position_bias
        mask = mask_from_transformers(attention_mask).with_positions(self.positions(hidden_states, table))
        return *self.attend(hidden_states, mask, return_scores=self._wants_scores(output_attentions)), table

    def table(self) -> Tensor:
        """Biases by distance, [H, R]: those at `max_distance` count for all beyond, as the last bucket has them."""
        distances = torch.arange(-self.max_distance, self.max_distance + 1, device=self.rel_attn_embed.weight.device)
        buckets = self._relative_positions_bucket(distances)  # type: ignore[operator]
        return self.rel_attn_embed(buckets).T

    def positions(self, x: Tensor, table: Tensor) -> RelativePositions:
        """What positions add to the scores, for what enters the block, [B, T, C]."""
        linear = self.gru_rel_pos_linear
        if is_plain(linear):
            with torch.autocast(x.device.type, enabled=False):
                x = x.to(linear.weight.dtype)
                gate = Gate.apply(x, linear.weight, linear.bias, self.gru_rel_pos_const.flatten())
        else:
            sums = linear(x.unflatten(-1, (self.num_heads, -1))).unflatten(-1, (2, -1)).sum(-1)
            gate = from_openings(sums.sigmoid(), self.gru_rel_pos_const.flatten())
        return RelativePositions(left=self.max_distance, table=table, gate=gate)


class ConformerAttention(HuggingFaceAttention):
    """The attention of Wav2Vec2-Conformer and Wav2Vec2-BERT: relative, relative to the key, rotary, or no positions."""

    config: Any
    head_size: int
    position_embeddings_type: str | None
    linear_q: nn.Linear
    linear_k: nn.Linear
    linear_v: nn.Linear
    linear_out: nn.Linear
    linear_pos: nn.Linear
    pos_bias_u: Tensor
    pos_bias_v: Tensor
    distance_embedding: nn.Embedding
    left_max_position_embeddings: int

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | AttentionMask | None = None,
        relative_position_embeddings: Tensor | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [B, T, C] and, only when asked for, the probabilities [B, H, T, T].

        relative_position_embeddings: as the encoder makes them: [1, 2T − 1, C], from the farthest key before a query to
            the farthest after it; or for rotary positions cos and sin, [2, T, 1, 1, D].

        Raises:
            ValueError: no such embeddings where the block needs them.
        """
        kind = self.position_embeddings_type
        if relative_position_embeddings is None and kind in ("relative", "rotary"):
            raise ValueError(f"relative_position_embeddings are missing: {kind} positions are made of them")
        mask = mask_from_transformers(attention_mask)
        options = {"return_scores": self._wants_scores(output_attentions)}
        if kind == "rotary":
            assert relative_position_embeddings is not None
            cos, sin = relative_position_embeddings[:, : hidden_states.shape[1], 0, 0]
            turned = Rotate.apply(hidden_states, cos, sin)
            q, k, v = self.linear_q(turned), self.linear_k(turned), self.linear_v(hidden_states)
            return self.attend_projected(q, k, v, mask, **options)
        if kind not in ("relative", "relative_key"):
            return self.attend(hidden_states, mask, **options)
        q, k, v = self.linear_q(hidden_states), self.linear_k(hidden_states), self.linear_v(hidden_states)
        if kind == "relative":
            embeddings = self.linear_pos(relative_position_embeddings)
            vectors = split_heads(embeddings, self.num_heads)[0]
            left, queries = vectors.shape[1] // 2, q + self.pos_bias_v.flatten()
            q = (q + self.pos_bias_u.flatten()).to(k.dtype)  # under autocast the sum is wider
        else:
            left, queries, vectors = self.left_max_position_embeddings, q, self.distance_embedding.weight[None]
        queries = split_heads(queries, self.num_heads)
        positions = RelativePositions(left=left, queries=queries, vectors=vectors, scale=self.scale)
        return self.attend_projected(q, k, v, mask.with_positions(positions), **options)

    def extra_repr(self) -> str:
        return f"{self.input_size} -> {self.output_size}, heads={self.num_heads}, backend={self.backend}"

    @property
    def _head_size(self) -> int:
        return self.head_size

    @property
    def _dropout_rate(self) -> float:
        return self.dropout.p  # type: ignore[union-attr]

    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        return self.linear_q, self.linear_k, self.linear_v, self.linear_out


_OURS = {
    "WavLMAttention": GatedAttention,
    "Wav2Vec2ConformerSelfAttention": ConformerAttention,
    "Wav2Vec2BertSelfAttention": ConformerAttention,
}


def ours_for(stock: type[nn.Module]) -> type[HuggingFaceAttention]:
    """Our class for one of Hugging Face's blocks, its own at the same time."""
    return derived(_OURS.get(stock.__name__, HuggingFaceAttention), stock)  # type: ignore[return-value]


def __getattr__(name: str) -> type[nn.Module]:
    """Makes the class of a family when a pickle asks for it by name."""
    for module_name, class_name in FAMILIES.values():
        if name == class_name:
            return ours_for(getattr(import_module(module_name), class_name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mask_from_transformers(attention_mask: Tensor | AttentionMask | None) -> AttentionMask:
    """transformers' conventions to ours. What a GPU holds is not looked into: that would make the host wait."""
    if attention_mask is None:
        return NO_MASK
    if isinstance(attention_mask, AttentionMask):  # from our own encoder
        return attention_mask
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"w2v_attn reads attention masks that are tensors, got {type(attention_mask).__name__}: load the model "
            'with attn_implementation="sdpa", "eager" or "flash_attention_2"'
        )
    if attention_mask.dim() == 2:
        return AttentionMask(padding=attention_mask.bool())
    on_cpu = attention_mask.device.type == "cpu"
    if attention_mask.dtype != torch.bool:
        lowest = torch.finfo(attention_mask.dtype).min
        forbidden = attention_mask <= lowest
        if not on_cpu or not bool((forbidden | (attention_mask == 0)).all()):
            return AttentionMask(bias=attention_mask)
        attention_mask = ~forbidden
    if on_cpu and attention_mask.shape[1] == 1 and attention_mask.shape[2] > 0:
        first_row = attention_mask[:, :, :1]
        if torch.equal(first_row.expand_as(attention_mask), attention_mask):
            return AttentionMask(padding=first_row[:, 0, 0])
    return AttentionMask(allowed=attention_mask)
