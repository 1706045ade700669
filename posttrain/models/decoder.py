"""The dense decoder of the Llama, Qwen2 and Qwen3 families, in one file.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; the families differ only in whether the projections carry
biases (Qwen2: q, k, v), whether queries and keys are normalised per head (Qwen3), and whether the head is tied to the
embedding. Parameter names are Hugging Face's, so `hf_format.py` copies tensors without a table.

Everything but attention works on one token at a time, so the layers see flat rows [M, D]. Attention is a function of
(layer, q, k, v) chosen by the caller, see `attention.py`: padded [N, T] rows, packed rows, or one new token against a
cache. The three share every parameter and agree to rounding; the padded one is the oracle of the other two.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.errors import ModelError
from posttrain.models.attention import Attention, pack_lengths, packed_attention, padded_attention
from posttrain.models.backward import Gate, GatedLinear, Normalise, NormalisedLinears
from posttrain.products import Linear, linear


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder. Field names are Hugging Face's, so a config.json reads like this record."""

    model_type: Literal["llama", "qwen2", "qwen3"] = "qwen3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """None, or a dict whose "rope_type" is "linear", "llama3" or "yarn"."""
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    """Biases on q, k, v (and on o where `output_bias`). Qwen2 has them on q, k, v alone."""
    output_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    extra: dict[str, Any] = field(default_factory=dict)
    """Other keys of the config.json that was read (token ids, ...), written back unchanged."""

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are RMS-normalised per head before rotation (Qwen3)."""
        return self.model_type == "qwen3"

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key-value heads evenly"
            )


def rope_frequencies(cfg: ModelConfig) -> tuple[Tensor, float]:
    """Rotation speed of each pair of dimensions, [head_dim / 2] in float32, and the factor on cos and sin.

    Plain: θ^(-2i/d) (Su et al. 2021). "linear" divides by the factor; "llama3" divides slow ones only, with a smooth
    passage between; "yarn" (Peng et al. 2023) ramps by rotations made over the original context, and scales attention.
    """
    d = cfg.head_dim
    freq = 1.0 / cfg.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float32) / d)
    scaling = cfg.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return freq, 1.0
    factor = scaling.get("factor", 1.0)
    if kind == "linear":
        return freq / factor, 1.0
    if kind == "llama3":
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * freq / (2 * math.pi)
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * freq / factor + smooth * freq, 1.0
    if kind == "yarn":
        return _yarn(cfg, scaling, freq)
    raise ModelError(f'rope scaling "{kind}" is not supported; known are default, linear, llama3 and yarn')


def _yarn(cfg: ModelConfig, scaling: dict[str, Any], freq: Tensor) -> tuple[Tensor, float]:
    d, base = cfg.head_dim, cfg.rope_theta
    original = scaling.get("original_max_position_embeddings") or cfg.max_position_embeddings
    factor = scaling.get("factor") or cfg.max_position_embeddings / original

    def dimension(rotations: float) -> float:  # the pair that turns this often over the original context
        return d * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    ramp = ((torch.arange(d // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    gain = scaling.get("attention_factor")
    if gain is None:
        slow, whole = scaling.get("mscale"), scaling.get("mscale_all_dim")
        slow, whole = (slow, whole) if slow and whole else (1.0, 0.0)
        grown = 0.1 * math.log(max(factor, 1.0))
        gain = (slow * grown + 1.0) / (whole * grown + 1.0)
    return freq / factor * ramp + freq * (1 - ramp), gain


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.through_float32 = False
        """Whether the normalised x is rounded to float32 on the way, as transformers does in any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if self.through_float32:
            y = x.float()
            return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return Normalise.apply(x.to(self.weight.dtype), self.weight, self.eps)  # x may be a product's bfloat16

    def then(self, x: Tensor, dtype: torch.dtype, *linears: nn.Module) -> tuple[Tensor, ...]:
        """What each of the linear layers makes of the normalised x, rounded to dtype before the products."""
        if self.through_float32 or any(type(m) is not Linear for m in linears):
            y = self(x).to(dtype)  # once: under autocast each layer would round it anew
            return tuple(m(y) for m in linears)
        matrices = (t for m in linears for t in (m.weight, m.bias))
        return NormalisedLinears.apply(x, self.weight, self.eps, dtype, *matrices)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions; how keys are found is the argument `attention`."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        d, h, k, hd = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        self.q_proj = Linear(d, h * hd, bias=cfg.attention_bias)
        self.k_proj = Linear(d, k * hd, bias=cfg.attention_bias)
        self.v_proj = Linear(d, k * hd, bias=cfg.attention_bias)
        self.o_proj = Linear(h * hd, d, bias=cfg.output_bias)
        self.q_norm = RMSNorm(hd, cfg.rms_norm_eps) if cfg.qk_norm else None
        self.k_norm = RMSNorm(hd, cfg.rms_norm_eps) if cfg.qk_norm else None
        self.head_dim = hd

    def forward(self, i: int, x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        found = norm.then(x, cos.dtype, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in found)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.o_proj(attention(i, _rotate(q, cos, sin), _rotate(k, cos, sin), v))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down( silu(gate(x)) · up(x) ) of a normalised x."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_proj = Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.mlp_bias)
        self.up_proj = Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.mlp_bias)
        self.down_proj = Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.mlp_bias)

    def forward(self, x: Tensor, norm: RMSNorm, products: torch.dtype) -> Tensor:
        gate, up = norm.then(x, products, self.gate_proj, self.up_proj)
        down = self.down_proj
        if type(down) is Linear:
            return GatedLinear.apply(gate, up, down.weight, down.bias)
        return down(Gate.apply(gate, up))  # an adapter needs its input


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the stream."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.self_attn = SelfAttention(cfg)
        self.mlp = MLP(cfg)
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def forward(self, i: int, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        x = x + self.self_attn(i, x, self.input_layernorm, cos, sin, attention)
        return x + self.mlp(x, self.post_attention_layernorm, cos.dtype)


class Decoder(nn.Module):
    """Token ids to hidden states; `head_weight` turns a hidden state into logits.

    Logits are never made for all positions here: the learner and the sampler take those they need.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.lm_head = None if cfg.tie_word_embeddings else nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        # A plain attribute, no buffer: `.to(bfloat16)` would round a buffer, and rotation angles with it.
        self.rope_freq, self.rope_gain = rope_frequencies(cfg)
        self.products: torch.dtype | None = None
        """Type of the projections' products where it is not that of the weights: torch.bfloat16. All else stays."""
        self.recompute = False
        """Whether the backward pass computes each layer's inner values again instead of keeping them."""

    def initialise(self, seed: int) -> "Decoder":
        """Fresh weights: normal(0, initializer_range) matrices, zero biases, unit norms. Returns self."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            with torch.no_grad():
                if p.dim() == 2:
                    p.normal_(0.0, self.cfg.initializer_range, generator=generator)
                else:
                    p.fill_(0.0 if name.endswith("bias") else 1.0)
        return self

    def round_as_transformers(self) -> "Decoder":
        """Let norms go through float32, so that a float64 model equals transformers' to the last digit. Returns self.

        For comparisons: in float64 it costs half the digits, in bfloat16 it rounds once more than needed.
        """
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.through_float32 = True
        return self

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: logits = hidden @ head_weight.T."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, tokens: Tensor, attend: Tensor | None = None) -> Tensor:
        """Hidden states [N, T, D] after the final norm, by the plain padded path.

        tokens: [N, T] ids. attend: [N, T], true at real tokens; padding may stand left or right. None: all are real.
        Positions count real tokens from 0, so left and right padding give the same states at real tokens.
        """
        n, t = tokens.shape
        if attend is None:
            positions = torch.arange(t, device=tokens.device).expand(n, t)
            mask = None
        else:
            attend = attend.bool()
            positions = (attend.long().cumsum(1) - 1).clamp(min=0)
            causal = torch.ones(t, t, dtype=torch.bool, device=tokens.device).tril()
            eye = torch.eye(t, dtype=torch.bool, device=tokens.device)
            mask = ((causal & attend[:, None, :]) | eye)[:, None]  # a padding row sees itself: no empty softmax
        return self.flat(tokens.flatten(), positions.flatten(), padded_attention(n, t, mask)).unflatten(0, (n, t))

    def rows(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states [M, D] of packed rows: none sees another, positions start at 0 in each, nothing is padded.

        tokens: [M] ids of all rows, one after the other. lengths: [N] with sum M.
        """
        packing = pack_lengths(lengths)
        return self.flat(tokens, packing.positions, packed_attention(packing))

    def flat(
        self, tokens: Tensor, positions: Tensor, attention: Attention, products: torch.dtype | None = None
    ) -> Tensor:
        """Hidden states [M, D] of flat tokens [M] at positions [M], with any attention pattern.

        products: type of the projections' products; default: `self.products`, or else the weights' own.
        """
        angle = positions[:, None].float() * self.rope_freq.to(positions.device)  # [M, d/2], float32 in any model
        x = self.embed_tokens(tokens)
        cos, sin = angle.cos() * self.rope_gain, angle.sin() * self.rope_gain
        products = products or self.products or x.dtype
        cos = torch.cat((cos, cos), -1).to(products)[:, None]  # [M, 1, d]: both halves of a head turn by the same angle
        sin = torch.cat((-sin, sin), -1).to(products)[:, None]
        with torch.autocast(x.device.type, dtype=products, enabled=products != x.dtype):
            for i, layer in enumerate(self.layers):
                if self.recompute and torch.is_grad_enabled():
                    x = checkpoint(layer, i, x, cos, sin, attention, use_reentrant=False)
                else:
                    x = layer(i, x, cos, sin, attention)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return linear(hidden, self.head_weight)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + d/2]) of x [M, h, d]; cos, sin [M, 1, d] serve both halves, sin's first negated."""
    a, b = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((b, a), dim=-1), sin)
