# pyright: strict, reportPrivateUsage=false, reportUnnecessaryComparison=false, reportUnnecessaryIsInstance=false
"""`MultiHeadSelfAttention`: the layer with its parameters and arguments."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from w2v_attn.attention import mathematics, weights
from w2v_attn.attention.autograd import AttentionOptions, attention_core, self_attention
from w2v_attn.attention.backends import select
from w2v_attn.attention.masks import NO_MASK, AttentionMask
from w2v_attn.attention.plain import is_plain_linear
from w2v_attn.attention.relative import RelativePositions

Initializer = Callable[[Tensor], object]

WEIGHT_INITIALIZERS: dict[str, Initializer] = {
    "glorot": nn.init.xavier_uniform_,
    "he": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
    "narrow_normal": lambda weight: nn.init.normal_(weight, std=0.01),
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
}
BIAS_INITIALIZERS: dict[str, Initializer] = {
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "narrow_normal": WEIGHT_INITIALIZERS["narrow_normal"],
}


class MultiHeadSelfAttention(nn.Module):
    """Multi-head self-attention as in wav2vec 2.0, with a derived backward and memory linear in the number of frames.

    The equations are in `mathematics.py`. Parameters are the weights and biases of `q_proj`, `k_proj`, `v_proj` and
    `out_proj`.

    Args:
        input_size: Channels C of the hidden states.
        num_heads: Number of heads H; must divide `key_size` and `value_size`.
        key_size: Channels of queries and keys, summed over heads. Default: `input_size`.
        value_size: Channels of values, summed over heads. Default: `key_size`.
        output_size: Channels of the output. Default: `input_size`.
        dropout: Rate in [0, 1) of dropout on the attention weights, in training only.
        bias: Whether the four projections have a bias.
        scale: Factor on the attention scores. Default: 1/√(key_size / num_heads).
        backend: `auto`, `tiled`, `sdpa` or `triton`; `auto` takes the fastest that supports a call.
        weight_initializer: `glorot`, `he`, `orthogonal`, `narrow_normal`, `zeros`, `ones`, or a function that fills a
            tensor in place.
        bias_initializer: `zeros`, `ones`, `narrow_normal`, or such a function.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: `num_heads` does not divide a size, or an argument is outside the values above.

    Source:
        A. Baevski et al., "wav2vec 2.0", section 2, whose context network is that of A. Vaswani et al., "Attention Is
        All You Need", section 3.2.2. The arguments are those of MATLAB's selfAttentionLayer.

    Examples:
        >>> layer = MultiHeadSelfAttention(512, 8, key_size=256, output_size=768)
        >>> layer(torch.randn(2, 49, 512)).shape
        torch.Size([2, 49, 768])
    """

    def __init__(
        self,
        input_size: int,
        num_heads: int,
        *,
        key_size: int | None = None,
        value_size: int | None = None,
        output_size: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        scale: float | None = None,
        backend: str = "auto",
        weight_initializer: str | Initializer = "glorot",
        bias_initializer: str | Initializer = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        key_size = input_size if key_size is None else key_size
        value_size = key_size if value_size is None else value_size
        output_size = input_size if output_size is None else output_size
        for name, size in (("key_size", key_size), ("value_size", value_size)):
            if num_heads < 1 or size % num_heads:
                raise ValueError(
                    f"num_heads must divide {name}: {size} channels cannot be split into {num_heads} heads"
                )
        _check_scale(scale)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        select.check_backend(backend)
        self.input_size = input_size
        self.num_heads = num_heads
        self.key_size = key_size
        self.value_size = value_size
        self.output_size = output_size
        self.dropout = dropout
        self.scale = (key_size // num_heads) ** -0.5 if scale is None else scale
        self.backend = backend
        self.q_proj = nn.Linear(input_size, key_size, bias, device, dtype)
        self.k_proj = nn.Linear(input_size, key_size, bias, device, dtype)
        self.v_proj = nn.Linear(input_size, value_size, bias, device, dtype)
        self.out_proj = nn.Linear(value_size, output_size, bias, device, dtype)
        self.initialize(weight_initializer, bias_initializer)

    def initialize(
        self, weight_initializer: str | Initializer = "glorot", bias_initializer: str | Initializer = "zeros"
    ) -> None:
        """Fill the four weights and biases.

        Args:
            weight_initializer: As for the class.
            bias_initializer: As for the class.

        Raises:
            ValueError: an unknown name of an initializer.
        """
        fill_weight = _initializer("weight_initializer", weight_initializer, WEIGHT_INITIALIZERS)
        fill_bias = _initializer("bias_initializer", bias_initializer, BIAS_INITIALIZERS)
        for projection in self._projections():
            fill_weight(projection.weight)
            if projection.bias is not None:
                fill_bias(projection.bias)

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        attention_mask: Tensor | str | None = None,
        positions: RelativePositions | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the attended hidden states [B, T, output_size].

        A row whose keys are all masked gets zeros from the heads and contributes no gradient.

        Args:
            x: Hidden states [B, T, input_size].
            padding_mask: bool [B, T], True = a real frame. Other frames are attended by no query.
            attention_mask: `"causal"`; or a tensor whose shape broadcasts to [B, H, T, T]: bool, True = attend, or
                float, added to the attention scores. A float mask receives its gradient.
            positions: What relative positions add to the scores. Its tensors receive their gradients.
            return_weights: Also return the attention weights.

        Returns:
            The hidden states; with `return_weights`, a tuple of them and the attention weights [B, H, T, T], before
            dropout. Gradients flow through both.

        Raises:
            ValueError: hidden states or a mask of another shape or dtype, or a named backend that does not support the
                call.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(
                f"hidden states must be [B, T, {self.input_size}], got {list(x.shape)}: "
                "is this layer from a checkpoint of another size?"
            )
        mask = AttentionMask.from_arguments(x, self.num_heads, padding_mask, attention_mask)
        if positions is not None:
            positions.check(x.shape[0], self.num_heads, x.shape[1], self.key_size // self.num_heads)
            mask = mask.with_positions(positions)
        y, p = self.attend(x, mask, return_weights=return_weights)
        return y if p is None else (y, p)

    def attend(self, x: Tensor, mask: AttentionMask, *, return_weights: bool) -> tuple[Tensor, Tensor | None]:
        """Return y [B, T, output_size] and the attention weights or None, without checks of the arguments."""
        _reject_tracing()
        if torch.compiler.is_compiling():
            return _uncompiled(self.attend, x, mask, return_weights=return_weights)
        projections = self._projections()
        if x.numel() > 0 and not return_weights and all(is_plain_linear(projection) for projection in projections):
            return _whole_block(x, projections, self._options(mask)), None
        q, k, v = (projection(x) for projection in projections[:3])
        return self.attend_projected(q, k, v, mask, return_weights=return_weights)

    def attend_projected(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, *, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return y and the attention weights or None, from projected queries, keys and values, [B, T, H·D].

        Steps (2) to (6); torch differentiates the projections.
        """
        _reject_tracing()
        if torch.compiler.is_compiling():
            return _uncompiled(self.attend_projected, q, k, v, mask, return_weights=return_weights)
        out_proj = self._projections()[3]
        if v.numel() == 0:  # no recordings or no frames: nothing to attend, and kernels reject it
            y = out_proj(v) + q.sum() + k.sum()  # adds 0, so that every parameter still gets a gradient
            p = v.new_zeros(v.shape[0], self.num_heads, v.shape[1], v.shape[1]) if return_weights else None
            return y, p
        q, k, v = (mathematics.split_heads(x, self.num_heads) for x in (q, k, v))
        options, p = self._options(mask), None
        with torch.autocast(q.device.type, enabled=False):
            if return_weights:
                o, p = weights.attend_with_weights(q, k, v, mask, scale=options.scale, dropout=options.dropout)
            else:
                o = attention_core(q, k, v, options)
        return out_proj(mathematics.merge_heads(o)), p

    def _options(self, mask: AttentionMask) -> AttentionOptions:
        _check_scale(self.scale)
        return AttentionOptions(
            num_heads=self.num_heads,
            scale=self.scale,
            dropout=self._dropout_rate if self.training else 0.0,
            backend=self.backend,
            mask=mask,
        )

    def backend_for(self, x: Tensor, mask: AttentionMask | None = None) -> str:
        """Return the name of the backend that a call with these hidden states [B, T, input_size] takes now."""
        mask = NO_MASK if mask is None else mask
        q = x.new_empty(1, self.num_heads, 1, self.key_size // self.num_heads)
        v = x.new_empty(1, self.num_heads, 1, self.value_size // self.num_heads)
        needs_bias_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in mask.bias_tensors)
        dropout = self._dropout_rate if self.training else 0.0
        return select.select_backend(self.backend, q, v, mask, dropout=dropout, needs_bias_grad=needs_bias_grad).name

    @property
    def _dropout_rate(self) -> float:
        return self.dropout

    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj, self.out_proj

    def extra_repr(self) -> str:
        return (
            f"{self.input_size} -> {self.output_size}, heads={self.num_heads}, key_size={self.key_size}, "
            f"value_size={self.value_size}, dropout={self.dropout}, backend={self.backend}"
        )


def _whole_block(x: Tensor, projections: tuple[nn.Linear, ...], options: AttentionOptions) -> Tensor:
    """Return steps (1) to (6) in one autograd function; under autocast in the dtype of autocast's linear maps."""
    q_proj, k_proj, v_proj, out_proj = projections
    parameters = (q_proj.weight, q_proj.bias, k_proj.weight, k_proj.bias)
    parameters += (v_proj.weight, v_proj.bias, out_proj.weight, out_proj.bias)
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:  # autocast leaves float64 alone
        return self_attention(x, parameters, options)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        cast = tuple(None if p is None else p.to(dtype) for p in parameters)
        return self_attention(x.to(dtype), cast, options)


def _check_scale(scale: object) -> None:
    if isinstance(scale, Tensor):
        raise ValueError("scale must be a number, got a tensor: to learn a scale, multiply the queries by it")


def _reject_tracing() -> None:
    if torch.jit.is_tracing():  # type: ignore[reportPrivateImportUsage]
        raise RuntimeError(
            "w2v_attn's attention cannot be traced by torch.jit.trace, which would record the values of this call's "
            "mask as constants: call restore_attention(model) first"
        )


def _call(
    method: Callable[..., tuple[Tensor, Tensor | None]], *arguments: object, **options: object
) -> tuple[Tensor, Tensor | None]:
    return method(*arguments, **options)


# Excluded from graph compilation: it reads masks on the CPU, draws seeds, and calls a few large kernels.
_uncompiled: Callable[..., tuple[Tensor, Tensor | None]] = torch.compiler.disable(_call)  # type: ignore[assignment]


def _initializer(argument: str, choice: str | Initializer, known: dict[str, Initializer]) -> Initializer:
    if callable(choice):
        return choice
    if choice not in known:
        raise ValueError(f'{argument} must be one of {", ".join(known)} or a function, got "{choice}"')
    return known[choice]
