"""Hugging Face's attention blocks, computed by our layer: wav2vec 2.0's, WavLM's, and those of Conformers.

The instances were built by Hugging Face: `num_heads`, `dropout`, projections and what positions need are theirs.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from w2v_attn.attention.gate import Gate, from_openings
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import split_heads
from w2v_attn.attention.plain import is_known_code, is_plain, replaced_forward
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.attention.rotary import Rotate
from w2v_attn.checkpoints.families import FAMILIES
from w2v_attn.patching.class_swap import derived

OUR_ATTRIBUTES = ("input_size", "key_size", "value_size", "output_size", "backend")
# Arguments that stock hands on to its implementations of attention, where some of them heed them.
UNKNOWN_ARGUMENTS = ("is_causal", "softcap", "position_bias")


class HuggingFaceAttention(MultiHeadSelfAttention):
    """The attention of wav2vec 2.0 and of the families that share it, with Hugging Face's arguments and results."""

    config: Any
    scaling: float

    @property
    def scale(self) -> float:  # type: ignore[override]
        """Factor on the scores: stock's, as it is now."""
        return self.scaling

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | AttentionMask | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [B, T, C] and, only when asked for, the probabilities [B, H, T, T].

        attention_mask: see `mask_from_transformers`.
        output_attentions: None asks the model's config.

        Raises:
            ValueError: states of another sequence to attend, for this is self-attention; a mask that cannot be read.
        """
        self._check_arguments(kwargs)
        if key_value_states is not None:
            raise ValueError(
                "w2v_attn computes self-attention, but this block was given the states of another sequence to attend "
                "(key_value_states): call restore_attention(model) to use it as cross-attention"
            )
        mask = mask_from_transformers(attention_mask, hidden_states, self.num_heads)
        return self.attend(hidden_states, mask, return_weights=self._wants_weights(output_attentions))

    def adopt(self, backend: str, config: Any) -> None:
        """Gives a block that was Hugging Face's what our layer has besides. config: of the model that it is in."""
        width = self.num_heads * self._head_size
        for name, value in zip(OUR_ATTRIBUTES, (width, width, width, width, backend), strict=True):
            setattr(self, name, value)

    def leave(self) -> None:
        """Takes it away again."""
        for name in OUR_ATTRIBUTES:
            delattr(self, name)

    @property
    def _head_size(self) -> int:
        return self.head_dim  # type: ignore[return-value]

    def unsupported_reason(self) -> str | None:
        """Return why stock would compute something else with this block as it is now; None where it would not."""
        if getattr(self, "is_causal", False):
            return "w2v_attn's attention attends in both directions and takes no is_causal, but it is set"
        if isinstance(self.scale, Tensor):
            return "w2v_attn's attention takes a number for a scale, and would give a tensor no gradient"
        if (home := replaced_forward(type(self))) is not None:
            return f"the forward of stock's {type(self).__name__} was replaced by one of {home}"
        widths = [width for one in self._projections()[:3] if (width := getattr(one, "out_features", None)) is not None]
        if any(width != self.num_heads * self._head_size for width in widths):
            return (
                f"its queries, keys and values have {', '.join(map(str, widths))} channels, which are not "
                f"{self.num_heads} heads of {self._head_size}: set num_heads to what is left after pruning"
            )
        return self._unsupported_implementation()

    def _unsupported_implementation(self) -> str | None:
        """Return why stock would call an implementation of attention that somebody registered; None: it would not."""
        name = getattr(self.config, "_attn_implementation", None)
        if name in (None, "eager") or is_known_code(ALL_ATTENTION_FUNCTIONS.get(name.removeprefix("paged|"))):
            return None
        return f'the model was told to use the attention implementation "{name}", which is not of transformers'

    def _check_arguments(self, arguments: dict[str, Any]) -> None:
        """Raises ValueError where stock would compute something else: what is ignored must not matter."""
        asked = [name for name in UNKNOWN_ARGUMENTS if arguments.get(name) not in (None, False)]
        reason = self.unsupported_reason()
        if asked:
            reason = f"w2v_attn's attention takes no {', '.join(asked)}, but was given it"
        if reason is not None:
            raise ValueError(f"{reason}: call restore_attention(model) to have stock's attention")

    def _wants_weights(self, output_attentions: bool | None) -> bool:
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

    @property
    def scale(self) -> float:  # type: ignore[override]
        """Factor on the scores: that of torch's function, which stock calls; it does not read `scaling`."""
        return self.head_dim**-0.5  # type: ignore[operator]

    def adopt(self, backend: str, config: Any) -> None:
        """See `HuggingFaceAttention`."""
        super().adopt(backend, config)
        self.config = config  # stock's gives its weights whether they are asked for or not, and needs none

    def _unsupported_implementation(self) -> None:
        """Stock calls torch's function, whatever the config says."""

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

        Raises:
            ValueError: biases of all pairs of frames, which a block of stock's returned.
        """
        self._check_arguments(kwargs)
        shape = (self.num_heads, 2 * self.max_distance + 1)
        if position_bias is not None and position_bias.shape != shape:
            raise ValueError(
                f"position_bias must be the table {list(shape)} that a block of w2v_attn returned, got "
                f"{list(position_bias.shape)}: are only some of this model's blocks replaced? WavLM's blocks hand "
                "their biases on to each other: call replace_attention on the whole model"
            )
        table = self.table() if position_bias is None else position_bias
        mask = mask_from_transformers(attention_mask, hidden_states, self.num_heads)
        mask = mask.with_positions(self.positions(hidden_states, table))
        return *self.attend(hidden_states, mask, return_weights=self._wants_weights(output_attentions)), table

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
    right_max_position_embeddings: int

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
        self._check_arguments(kwargs)
        mask = mask_from_transformers(attention_mask, hidden_states, self.num_heads)
        options = {"return_weights": self._wants_weights(output_attentions)}
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
            left, right = self.left_max_position_embeddings, self.right_max_position_embeddings
            queries, vectors = q, self.distance_embedding(torch.arange(left + right + 1, device=q.device))[None]
        queries = split_heads(queries, self.num_heads)
        positions = RelativePositions(left=left, queries=queries, vectors=vectors, scale=self.scale)
        return self.attend_projected(q, k, v, mask.with_positions(positions), **options)

    def extra_repr(self) -> str:
        return f"{self.input_size} -> {self.output_size}, heads={self.num_heads}, backend={self.backend}"

    @property
    def _head_size(self) -> int:
        return self.head_size

    def _unsupported_implementation(self) -> None:
        """Stock has one implementation, whatever the config says."""

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


def mask_from_transformers(
    attention_mask: Tensor | AttentionMask | None, hidden_states: Tensor, num_heads: int
) -> AttentionMask:
    """transformers' masks as ours, for hidden states [B, T, C].

    attention_mask: as transformers makes it for any of its implementations: float [B, 1, T, T] of 0 and the lowest
        number, bool [B, 1, T, T] with True = attend, or [B, T] with 1 = a real frame. Whatever broadcasts to these or
        to [B, H, T, T] does, too. Of what a GPU holds, only floats of [B, T] are looked into: the host would wait.

    Raises:
        ValueError: another shape or dtype.
    """
    if attention_mask is None:
        return NO_MASK
    if isinstance(attention_mask, AttentionMask):  # from our own encoder
        return attention_mask
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"w2v_attn reads attention masks that are tensors, got {type(attention_mask).__name__}: load the model "
            'with attn_implementation="sdpa", "eager" or "flash_attention_2"'
        )
    B, T = hidden_states.shape[:2]
    if attention_mask.dim() == 2:
        return AttentionMask(padding=_padding(attention_mask, B, T))
    shape, full = (1,) * (4 - attention_mask.dim()) + tuple(attention_mask.shape), (B, num_heads, T, T)
    if len(shape) > 4 or any(n not in (1, m) for n, m in zip(shape, full, strict=True)):
        raise ValueError(
            f"attention_mask must broadcast to [B, H, T, T] = {list(full)} or be [B, T] = {[B, T]}, got "
            f"{list(attention_mask.shape)}"
        )
    if attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
        raise ValueError(
            "an attention_mask of all pairs of frames must be bool (True = attend) or float (added to the scores), got "
            f"{attention_mask.dtype}: convert 0/1 integers with .bool()"
        )
    attention_mask = attention_mask.reshape(shape)
    on_cpu = attention_mask.device.type == "cpu"
    if attention_mask.dtype != torch.bool:
        if attention_mask.requires_grad:  # a learnable one may be all zeros now
            return AttentionMask(bias=attention_mask)
        lowest = torch.finfo(attention_mask.dtype).min
        forbidden = attention_mask <= lowest
        if not on_cpu or not bool((forbidden | (attention_mask == 0)).all()):
            return AttentionMask(bias=attention_mask)
        attention_mask = ~forbidden
    if on_cpu and attention_mask.shape[1] == 1 and T > 0 and attention_mask.shape[3] == T:
        first_row = attention_mask[:, :, :1]
        if torch.equal(first_row.expand_as(attention_mask), attention_mask):
            return AttentionMask(padding=first_row[:, 0, 0].expand(B, T))
    return AttentionMask(allowed=attention_mask)


def _padding(attention_mask: Tensor, B: int, T: int) -> Tensor:
    """bool [B, T] of a mask [B or 1, T] with 1 for real frames."""
    if attention_mask.shape not in ((B, T), (1, T)):
        raise ValueError(
            f"an attention_mask of two dimensions must be [B, T] = {[B, T]} with 1 for a real frame, got "
            f"{list(attention_mask.shape)}: one of all pairs of frames needs all four, [1, 1, T, T]"
        )
    real = attention_mask.bool()
    if attention_mask.is_floating_point() and not bool((attention_mask == real).all()):
        raise ValueError(
            f"a float attention_mask [B, T] must be 1 for a real frame and 0 else, got values from "
            f"{attention_mask.min().item():g} to {attention_mask.max().item():g}: is it one that is added to the "
            "scores? Those need all four dimensions, [B, 1, 1, T]"
        )
    return real.expand(B, T)
