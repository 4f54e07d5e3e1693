"""Hugging Face's attention blocks, computed by our layer: those of wav2vec 2.0, WavLM and Conformers.

Hugging Face builds the instances: `num_heads`, `dropout`, projections and parameters of positions are its attributes.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from w2v_attn.attention.gate import PositionGate, gate_output
from w2v_attn.attention.layer import MultiHeadSelfAttention
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.mathematics import split_heads
from w2v_attn.attention.plain import is_known_code, is_plain_linear, replaced_forward
from w2v_attn.attention.relative import RelativePositions
from w2v_attn.attention.rotary import Rotate
from w2v_attn.checkpoints.families import FAMILIES
from w2v_attn.patching.class_swap import patched_class

OUR_ATTRIBUTES = ("input_size", "key_size", "value_size", "output_size", "backend")
# Arguments that stock passes to its implementations of attention, some of which use them.
UNSUPPORTED_ARGUMENTS = ("is_causal", "softcap", "position_bias")


class HuggingFaceAttention(MultiHeadSelfAttention):
    """Attention of wav2vec 2.0 and the families that share it, with Hugging Face's arguments and results."""

    config: Any
    scaling: float

    @property
    def scale(self) -> float:  # type: ignore[override]
        """Factor on the scores: the current value of the stock attribute."""
        return self.scaling

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | AttentionMask | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Return hidden states [B, T, C] and the attention weights [B, H, T, T], or None if they are not requested.

        Args:
            hidden_states: [B, T, C].
            key_value_states: Must be None.
            attention_mask: See `mask_from_transformers`.
            output_attentions: Whether to return the attention weights. Default: as the model's config says.
            **kwargs: Must be None or False if they affect the stock block.

        Raises:
            ValueError: states of another sequence to attend, for this is self-attention; a mask that cannot be read.
        """
        self._check_arguments(kwargs)
        if key_value_states is not None:
            raise ValueError(
                "w2v_attn computes self-attention, but this block got the states of another sequence to attend "
                "(key_value_states): call restore_attention(model) to use it as cross-attention"
            )
        mask = mask_from_transformers(attention_mask, hidden_states, self.num_heads)
        return self.attend(hidden_states, mask, return_weights=self._wants_weights(output_attentions))

    def on_patch(self, backend: str, config: Any) -> None:
        """Set the attributes of our layer on a patched block. config: of the model that the block belongs to."""
        width = self.num_heads * self._head_size
        for name, value in zip(OUR_ATTRIBUTES, (width, width, width, width, backend), strict=True):
            setattr(self, name, value)

    def on_restore(self) -> None:
        """Delete the attributes that `on_patch` set, before stock attention is restored."""
        for name in OUR_ATTRIBUTES:
            delattr(self, name)

    @property
    def projections(self) -> tuple[nn.Module, ...]:
        """The projections of queries, keys, values and the output."""
        return self._projections()

    @property
    def _head_size(self) -> int:
        return self.head_dim  # type: ignore[return-value]

    def unsupported_reason(self) -> str | None:
        """Return why stock would now compute something else with this block, or None if it would not."""
        if getattr(self, "is_causal", False):
            return "w2v_attn's attention attends in both directions and does not support is_causal, but it is set"
        if isinstance(self.scale, Tensor):
            return "w2v_attn's attention needs a number for a scale, and would not compute the gradient of a tensor"
        if (source := replaced_forward(type(self))) is not None:
            return f"the forward of stock's {type(self).__name__} was replaced by one of {source}"
        widths = [width for one in self._projections()[:3] if (width := getattr(one, "out_features", None)) is not None]
        if any(width != self.num_heads * self._head_size for width in widths):
            return (
                f"its queries, keys and values have {', '.join(map(str, widths))} channels, which are not "
                f"{self.num_heads} heads of {self._head_size}: set num_heads to what is left after pruning"
            )
        return self._unsupported_implementation()

    def _unsupported_implementation(self) -> str | None:
        """Return why stock would call a registered implementation of attention, or None if it would not."""
        name = getattr(self.config, "_attn_implementation", None)
        if name in (None, "eager") or is_known_code(ALL_ATTENTION_FUNCTIONS.get(name.removeprefix("paged|"))):
            return None
        return f'the model uses the attention implementation "{name}", which is not of transformers'

    def _check_arguments(self, arguments: dict[str, Any]) -> None:
        """Raise ValueError if stock would compute something else: an ignored argument must have no effect."""
        asked = [name for name in UNSUPPORTED_ARGUMENTS if arguments.get(name) not in (None, False)]
        reason = self.unsupported_reason()
        if asked:
            reason = f"w2v_attn's attention does not support {', '.join(asked)}, but got it"
        if reason is not None:
            raise ValueError(f"{reason}: call restore_attention(model) to use stock attention")

    def _wants_weights(self, output_attentions: bool | None) -> bool:
        if output_attentions is None:
            return bool(getattr(self.config, "output_attentions", False))
        return output_attentions


class GatedAttention(HuggingFaceAttention):
    """Attention of WavLM: the scores get a bias by distance, times a gate of the query.

    The first block has the table of biases and passes it on to the others. Stock passes on the biases of all pairs of
    frames, [B·H, T, T], and returns attention weights averaged over heads; here they are per head.
    """

    num_buckets: int
    max_distance: int
    gru_rel_pos_linear: nn.Linear
    gru_rel_pos_const: Tensor
    rel_attn_embed: nn.Embedding

    @property
    def scale(self) -> float:  # type: ignore[override]
        """Factor on the scores, as in torch's function, which stock calls; it does not read `scaling`."""
        return self.head_dim**-0.5  # type: ignore[operator]

    def on_patch(self, backend: str, config: Any) -> None:
        """See `HuggingFaceAttention`."""
        super().on_patch(backend, config)
        self.config = config  # the stock block always returns attention weights, and has no config

    def _unsupported_implementation(self) -> None:
        """Return None: stock calls torch's function, whatever the config says."""

    def on_restore(self) -> None:
        """See `HuggingFaceAttention`."""
        super().on_restore()
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
        """Return hidden states [B, T, C], the attention weights [B, H, T, T] or None, and the table for the next block.

        Args:
            hidden_states: [B, T, C].
            attention_mask: See `mask_from_transformers`.
            position_bias: The table [H, R] that the previous block returned; None in the first block.
            index: Number of the block, not used.
            output_attentions: Whether to return the attention weights. Default: as the model's config says.
            **kwargs: Must be None or False if they affect the stock block.

        Raises:
            ValueError: `position_bias` is that of a stock block: the biases of all pairs of frames.
        """
        self._check_arguments(kwargs)
        shape = (self.num_heads, 2 * self.max_distance + 1)
        if position_bias is not None and position_bias.shape != shape:
            raise ValueError(
                f"position_bias must be the table {list(shape)} that a block of w2v_attn returned, got "
                f"{list(position_bias.shape)}: are only some of this model's blocks replaced? WavLM's blocks pass "
                "their biases on to each other: call replace_attention on the whole model"
            )
        table = self.table() if position_bias is None else position_bias
        mask = mask_from_transformers(attention_mask, hidden_states, self.num_heads)
        mask = mask.with_positions(self.positions(hidden_states, table))
        return *self.attend(hidden_states, mask, return_weights=self._wants_weights(output_attentions)), table

    def table(self) -> Tensor:
        """Return the biases by distance, [H, R]; distances beyond `max_distance` share its bias, the last bucket's."""
        distances = torch.arange(-self.max_distance, self.max_distance + 1, device=self.rel_attn_embed.weight.device)
        buckets = self._relative_positions_bucket(distances)  # type: ignore[operator]
        return self.rel_attn_embed(buckets).T

    def positions(self, x: Tensor, table: Tensor) -> RelativePositions:
        """Return the relative positions for the input of the block, [B, T, C]."""
        linear = self.gru_rel_pos_linear
        if is_plain_linear(linear):
            with torch.autocast(x.device.type, enabled=False):
                x = x.to(linear.weight.dtype)
                gate = PositionGate.apply(x, linear.weight, linear.bias, self.gru_rel_pos_const.flatten())
        else:
            sums = linear(x.unflatten(-1, (self.num_heads, -1))).unflatten(-1, (2, -1)).sum(-1)
            gate = gate_output(sums.sigmoid(), self.gru_rel_pos_const.flatten())
        return RelativePositions(left=self.max_distance, table=table, gate=gate)


class ConformerAttention(HuggingFaceAttention):
    """Attention of Wav2Vec2-Conformer and Wav2Vec2-BERT, with relative, relative-key, rotary or no positions."""

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
        """Return hidden states [B, T, C] and the attention weights [B, H, T, T], or None if they are not requested.

        Args:
            hidden_states: [B, T, C].
            attention_mask: See `mask_from_transformers`.
            relative_position_embeddings: As the encoder makes them: [1, 2T − 1, C], from the farthest key before a
                query to the farthest after it; or for rotary positions cos and sin, [2, T, 1, 1, D].
            output_attentions: Whether to return the attention weights. Default: as the model's config says.
            **kwargs: Must be None or False if they affect the stock block.

        Raises:
            ValueError: no such embeddings where the block needs them.
        """
        kind = self.position_embeddings_type
        if relative_position_embeddings is None and kind in ("relative", "rotary"):
            raise ValueError(f"relative_position_embeddings are missing: {kind} positions need them")
        self._check_arguments(kwargs)
        mask = mask_from_transformers(attention_mask, hidden_states, self.num_heads)
        options = {"return_weights": self._wants_weights(output_attentions)}
        if kind == "rotary":
            assert relative_position_embeddings is not None
            cos, sin = relative_position_embeddings[:, : hidden_states.shape[1], 0, 0]
            rotated = Rotate.apply(hidden_states, cos, sin)
            q, k, v = self.linear_q(rotated), self.linear_k(rotated), self.linear_v(hidden_states)
            return self.attend_projected(q, k, v, mask, **options)
        if kind not in ("relative", "relative_key"):
            return self.attend(hidden_states, mask, **options)
        q, k, v = self.linear_q(hidden_states), self.linear_k(hidden_states), self.linear_v(hidden_states)
        if kind == "relative":
            embeddings = self.linear_pos(relative_position_embeddings)
            vectors = split_heads(embeddings, self.num_heads)[0]
            left, queries = vectors.shape[1] // 2, q + self.pos_bias_v.flatten()
            q = (q + self.pos_bias_u.flatten()).to(k.dtype)  # under autocast the sum has a wider dtype
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
        """Return None: stock has one implementation, whatever the config says."""

    @property
    def _dropout_rate(self) -> float:
        return self.dropout.p  # type: ignore[union-attr]

    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        return self.linear_q, self.linear_k, self.linear_v, self.linear_out


_ATTENTION_CLASSES = {
    "WavLMAttention": GatedAttention,
    "Wav2Vec2ConformerSelfAttention": ConformerAttention,
    "Wav2Vec2BertSelfAttention": ConformerAttention,
}


def patched_attention_class(stock: type[nn.Module]) -> type[HuggingFaceAttention]:
    """Return the class derived from ours and from one of Hugging Face's attention blocks."""
    return patched_class(_ATTENTION_CLASSES.get(stock.__name__, HuggingFaceAttention), stock)  # type: ignore[return-value]


def __getattr__(name: str) -> type[nn.Module]:
    """Return the patched class of a family, which pickles refer to by name; it is created on first access."""
    for module_name, class_name in FAMILIES.values():
        if name == class_name:
            return patched_attention_class(getattr(import_module(module_name), class_name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mask_from_transformers(
    attention_mask: Tensor | AttentionMask | None, hidden_states: Tensor, num_heads: int
) -> AttentionMask:
    """Return the `AttentionMask` of a mask of transformers.

    Args:
        attention_mask: As transformers makes it for any of its implementations: float [B, 1, T, T] of 0 and the lowest
            number, bool [B, 1, T, T] with True = attend, or [B, T] with 1 = a real frame; or anything that broadcasts
            to these or to [B, H, T, T]. On a GPU only the values of float masks [B, T] are read, because the host would
            have to wait.
        hidden_states: [B, T, C].
        num_heads: H.

    Raises:
        ValueError: another shape or dtype.
    """
    if attention_mask is None:
        return NO_MASK
    if isinstance(attention_mask, AttentionMask):  # from an unpadded encoder
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
        if attention_mask.requires_grad:  # a learnable one may be all zeros at first
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
    """Return a mask [B or 1, T] with 1 for real frames as bool [B, T]."""
    if attention_mask.shape not in ((B, T), (1, T)):
        raise ValueError(
            f"an attention_mask of two dimensions must be [B, T] = {[B, T]} with 1 for a real frame, got "
            f"{list(attention_mask.shape)}: one for all pairs of frames needs four, [1, 1, T, T]"
        )
    real = attention_mask.bool()
    if attention_mask.is_floating_point() and not bool((attention_mask == real).all()):
        raise ValueError(
            f"a float attention_mask [B, T] must be 1 for a real frame and 0 else, got values from "
            f"{attention_mask.min().item():g} to {attention_mask.max().item():g}: is it meant to be added to the "
            "scores? Then it needs four dimensions, [B, 1, 1, T]"
        )
    return real.expand(B, T)
