"""A decoder's weights once more, laid out for one new token in each of a few sequences.

With so few rows a product is as fast as its weights stream from memory, and every other operation costs its call. So
the projections that read one input are one matrix, matrices are stored as they are read (a product with one row runs
two to four times faster that way than with the module's own layout), and the weights of norms and the scale of
attention are multiplied into the matrices behind them. Adapters are merged in. To rounding it is the same function as
`Decoder.flat` with `decode_attention` and `Decoder.logits`, against which the tests hold it.

Whoever trains changes the decoder, so `refresh` before each rollout copies what has changed since. The copy costs as
much memory as the weights in its precision, a quarter of what training them with AdamW takes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from posttrain.models.attention import Cache
from posttrain.models.decoder import Decoder, Layer, RMSNorm
from posttrain.products import add_mm, mm

_optimizer_steps = 0


@register_optimizer_step_post_hook
def _count(*_) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


class _Weights(NamedTuple):
    """One layer; matrices are [in, out], biases [out] or None."""

    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    """[H + K, d]"""
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Decoding:
    """Computes logits of the next token against a cache. dtype: of the products; default: as the model's products."""

    def __init__(self, model: Decoder, dtype: torch.dtype | None = None):
        self.model = model
        self.dtype = dtype or model.products or model.embed_tokens.weight.dtype
        self._seen: list[tuple[int, int]] = []
        self._layers: list[_Weights] = []
        self._head = self._embedding = torch.empty(0)
        self._turns: tuple[Tensor, Tensor] | None = None

    def refresh(self) -> None:
        """Copy the weights, if any of them may have changed since the last time."""
        # A write in place raises a tensor's version, but fused optimizers do not: steps are counted as well.
        seen = [(_optimizer_steps, 0), *((id(p), p._version) for p in self.model.parameters())]
        if seen == self._seen:
            return
        self._layers = [self._laid_out(layer) for layer in self.model.layers]
        self._head = self._columns(self.model.head_weight, self.model.norm)
        self._embedding = self.model.embed_tokens.weight.detach()
        self._seen = seen

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits [M, V] after one new token in each of the first M slots.

        tokens, positions: [M] ids, and their places, to which the cache is filled; they are written into it.
        """
        cfg, m = self.model.cfg, len(tokens)
        heads, shared, d = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        turned = heads + shared
        cos, sin = (x.index_select(0, positions)[:, None] for x in self._rotations(cache))
        shortest, longest = (int(x) + 1 for x in positions.aminmax())
        places, (keys, values) = cache.places(slice(m), positions), cache.read(m, longest)
        bias = None if shortest == longest else _unwritten(positions, longest, cache).repeat_interleave(shared, 0)
        x = F.embedding(tokens, self._embedding)
        for i, w in enumerate(self._layers):
            qkv = _product(self._normed(x), w.qkv, w.qkv_bias).to(x.dtype).view(m, turned + shared, d)
            qk = qkv[:, :turned]
            if w.qk_norm is not None:
                qk.copy_(_normalised(qk, cfg.rms_norm_eps)).mul_(w.qk_norm)
            a, b = qk.chunk(2, dim=-1)
            crossed = torch.cat((b, a), dim=-1)
            qk.mul_(cos).addcmul_(crossed, sin)
            cache.write(i, places, qkv[:, heads:])
            queries = qkv[:, :heads].reshape(m * shared, -1, d)  # those that share a key side by side
            scores = torch.bmm(queries, keys[i]) if bias is None else torch.baddbmm(bias, queries, keys[i])
            mixed = torch.bmm(scores.softmax(-1), values[i]).view(m, heads * d)
            _add_product(x, mixed.to(self.dtype), w.out, w.out_bias)
            gate, up = _product(self._normed(x), w.gate_up, w.gate_up_bias).chunk(2, dim=-1)
            _add_product(x, F.silu(gate).mul_(up), w.down, w.down_bias)
        return mm(self._normed(x), self._head)

    def _normed(self, x: Tensor) -> Tensor:
        return _normalised(x, self.model.cfg.rms_norm_eps).to(self.dtype)

    def _rotations(self, cache: Cache) -> tuple[Tensor, Tensor]:
        """cos and sin [L, d] of every place in the cache, for both halves of a head; sin's first half is negated."""
        if self._turns is None or len(self._turns[0]) < cache.length:
            freq, like = self.model.rope_freq.to(cache.memory.device), cache.memory
            angle = torch.arange(cache.length, device=like.device)[:, None].float() * freq
            cos, sin = angle.cos() * self.model.rope_gain, angle.sin() * self.model.rope_gain
            self._turns = torch.cat((cos, cos), -1).to(like.dtype), torch.cat((-sin, sin), -1).to(like.dtype)
        return self._turns

    def _laid_out(self, layer: Layer) -> _Weights:
        mine, mlp, scale = layer.self_attn, layer.mlp, self.model.cfg.head_dim**-0.5
        heads, shared = self.model.cfg.num_attention_heads, self.model.cfg.num_key_value_heads
        norms = None
        if mine.q_norm is not None:
            # sqrt(d), which `_normalised` leaves out, and attention's scale cancel for queries
            norms = mine.q_norm.weight.expand(heads, -1), (mine.k_norm.weight / scale).expand(shared, -1)
            norms, scale = torch.cat(norms), 1.0
        projections = (mine.q_proj, mine.k_proj, mine.v_proj)
        weights = [dense(p) for p in projections]
        biases = [p.bias for p in projections]
        weights[0] = weights[0] * scale
        if biases[0] is not None:
            biases[0] = biases[0] * scale
        return _Weights(
            qkv=self._columns(torch.cat(weights), layer.input_layernorm),
            qkv_bias=self._bias(biases),
            qk_norm=norms,
            out=self._columns(dense(mine.o_proj)),
            out_bias=self._bias([mine.o_proj.bias]),
            gate_up=self._columns(
                torch.cat([dense(mlp.gate_proj), dense(mlp.up_proj)]), layer.post_attention_layernorm
            ),
            gate_up_bias=self._bias([mlp.gate_proj.bias, mlp.up_proj.bias]),
            down=self._columns(dense(mlp.down_proj)),
            down_bias=self._bias([mlp.down_proj.bias]),
        )

    def _columns(self, weight: Tensor, norm: RMSNorm | None = None) -> Tensor:
        """A projection [out, in] as [in, out], behind a norm with what `_normalised` leaves out multiplied in."""
        weight = weight if norm is None else weight * (norm.weight * len(norm.weight) ** 0.5)
        return weight.detach().t().to(self.dtype).contiguous()

    def _bias(self, parts: list[Tensor | None]) -> Tensor | None:
        return None if parts[0] is None else torch.cat(parts).detach().to(self.dtype)


def dense(projection: nn.Module) -> Tensor:
    """The weight [out, in] of a projection, with its adapter merged in where it has one."""
    return projection.merged() if hasattr(projection, "merged") else projection.weight


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = mm(x, weight)
    return y if bias is None else y.add_(bias)


def _add_product(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    add_mm(x, y, weight)
    if bias is not None:
        x.add_(bias)


def _normalised(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without a weight, divided by sqrt(D), in half the calls that `F.rms_norm` makes on a CPU."""
    return x * x.square().sum(-1, keepdim=True).add_(eps * x.shape[-1]).rsqrt_()


def _unwritten(positions: Tensor, longest: int, cache: Cache) -> Tensor:
    """[M, 1, longest]: -inf at places behind each sequence's end, else 0."""
    behind = torch.arange(longest, device=positions.device) > positions[:, None]
    return cache.memory.new_zeros(len(positions), longest).masked_fill_(behind, -torch.inf)[:, None]
