"""How many bytes a training step holds at once: arithmetic on shapes, without running anything.

What the decoder keeps for the backward pass is counted number by number, layer by layer. That was derived from the code
of `models/decoder.py` and is compared with counted bytes in `tests/algorithms/test_memory.py`, so a change there must
be told here. Of models only shapes, types and what is trained are looked at: parameters on the device "meta" will do.

A run has a few moments at which much is alive; each is a sum of named parts, and the largest says what is needed.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Literal, NamedTuple

import torch
from torch import nn

from posttrain.batch import Together, TokenBatch
from posttrain.models.attention import pack, similar_lengths
from posttrain.models.lora import LoraLinear, TokenRows, adapter_of
from posttrain.objectives import tokens
from posttrain.objectives.tokens import logprobs_from_hidden

CHUNK: int = signature(logprobs_from_hidden).parameters["chunk"].default
"""Rows whose logits exist at one time."""
CELL, CELL_WORK = 64, 96
"""Bytes for every cell of a padded [N, T] batch: its columns, and what the loss formula makes of them."""
INDEX = 8
"""Bytes of an index."""


class Sizes(NamedTuple):
    """What a micro-batch makes the model compute."""

    rows: int
    longest: int
    """Tokens of the longest row."""
    real: int
    """Tokens of all rows."""
    tokens: int
    """Tokens that are computed: those that rows of a group begin with are computed once."""
    cells: int
    """Places in the grids that attention works on."""
    learned: int
    """Tokens whose log-probability is wanted."""


def sizes(batch: TokenBatch) -> Sizes:
    """The sizes of a batch that is computed in one piece."""
    lengths = batch.lengths.tolist()
    own = int(pack(batch.attend, batch.tokens, batch.group).own.sum())
    cells = sum(len(rows) * longest for rows, longest in similar_lengths(lengths))
    return Sizes(len(batch), max(lengths), sum(lengths), own, cells, int(batch.mask.sum()))


def first_piece(batch: TokenBatch, micro_tokens: int | None, together: Together) -> tuple[TokenBatch, int]:
    """The micro-batch with the longest rows, which is the first, and how many there are."""
    pieces = batch.pieces(micro_tokens, together)
    piece = batch.select(pieces[0][0])
    if together == "row" and len(pieces) > 1:  # rows of a group may come apart, and then share nothing
        piece = piece.with_(group=torch.arange(len(piece)))
    return piece, len(pieces)


def too_large(
    batch: TokenBatch, micro_tokens: int | None, together: Together, setting: str = "optim.micro_tokens"
) -> str:
    """How large the largest micro-batch of a batch is and what makes it smaller, as sentences for an error."""
    size = sizes(first_piece(batch, micro_tokens, together)[0])
    now = "none" if micro_tokens is None else micro_tokens
    text = f"The largest micro-batch has {size.rows} rows of up to {size.longest} tokens, {size.real:,} in all"
    if size.rows > (2 if together == "group" else 1):
        half = max(size.longest, size.real // 2)
        return f"{text} ({setting} = {now}). Set {setting} = {half}: the gradient stays the same."
    return (
        f"{text}, and cannot be cut. Shorten rows (data.max_len, sampling.max_tokens), or train adapters (lora.rank)."
    )


def weight_bytes(model: nn.Module, *, trained: bool = False) -> int:
    """Bytes of the weights of a model, or of those that are trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not trained)


def cache_bytes(model: nn.Module, slots: int, length: int) -> int:
    """Bytes of the sampler's keys and values: slots of up to `length` tokens."""
    cfg = model.cfg
    numbers = 2 * cfg.num_hidden_layers * slots * cfg.num_key_value_heads * length * cfg.head_dim
    return numbers * model.norm.weight.element_size()


def decoding_bytes(model: nn.Module, precision: str = "float32") -> int:
    """Bytes of the sampler's own copy of all matrices, adapters merged (`models/decoding.py`)."""
    cfg = model.cfg
    linears = [m for m in model.layers[0].modules() if isinstance(m, (nn.Linear, LoraLinear))]
    layer = sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in linears)
    numbers = cfg.num_hidden_layers * layer + cfg.vocab_size * cfg.hidden_size
    return numbers * (2 if precision == "bfloat16" else model.norm.weight.element_size())


class Saved(NamedTuple):
    """What a forward pass keeps for its backward pass, and what is alive in passing, in bytes."""

    layers: int
    """Inputs of products and norms, for each computed token."""
    attention: int
    """Queries, keys, values, outputs and log-sums, for each cell of attention's grids."""
    head: int
    """Last hidden states, and e^z of the chunks that are not computed again."""
    passing: int
    """Chunks of logits, and the gradients on their way down, at the highest point."""

    @property
    def kept(self) -> int:
        """Alive when the backward pass begins."""
        return self.layers + self.attention + self.head


def saved(
    model: nn.Module,
    size: Sizes,
    needs: Sequence[str],
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    recompute: bool = False,
) -> Saved:
    """The memory of one forward and backward pass, beside weights and their gradients.

    Per layer and token, with D = hidden size, F = that of the MLP, H and K heads of d numbers: the stream twice,
    queries and keys before their own norms, attention's result, and twice F, gate and up. Adapters also keep what the
    two norms make of the stream, and the product of gate and up. Inputs of products whose weights are frozen are not
    kept. Products in bfloat16 keep their inputs and their weights in it; recomputed layers keep the stream alone, but
    for the one that is walked back.
    """
    decoder = getattr(model, "decoder", model)
    cfg, layer = decoder.cfg, decoder.layers[0]
    e = decoder.norm.weight.element_size()
    p = min(e, 2) if precision == "bfloat16" else e
    d_model, wide, d, n = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim, cfg.num_hidden_layers
    queries, keys = cfg.num_attention_heads * d, cfg.num_key_value_heads * d
    norms, products = _per_token(layer, cfg)
    inner = size.tokens * (e * norms + p * products) + p * _product_weights(layer) * (p != e)
    grids = size.cells * (e * 2 * (queries + keys) + 4 * cfg.num_attention_heads)
    layers = n * (size.tokens * d_model * e if recompute else inner)
    layers += size.tokens * (p * 2 * d + e * (d_model + 1) + 3 * INDEX)  # angles, the last norm, places
    attention = n * grids * (not recompute) + size.cells * INDEX
    if "values" in needs:
        head, at_head, slope = size.tokens * d_model * e, size.tokens * d_model * e, 0
    else:
        head, at_head, slope = _head(decoder, size, needs, p)
    after = size.tokens * (p * 3 * wide + e * d_model) + (inner + grids) * recompute + slope - head
    return Saved(layers, attention, head, max(at_head, after, 0))


def _per_token(layer: nn.Module, cfg) -> tuple[int, int]:
    """Numbers that a layer keeps for each token: around its norms, and around its products."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [m for m in layer.modules() if isinstance(m, (nn.Linear, LoraLinear))]

    def kept(*users: nn.Module) -> bool:
        return any(isinstance(m, LoraLinear) or m.weight.requires_grad for m in users)

    d_model, wide, d = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    norms = 2 * (d_model + 1)
    norms += (cfg.num_attention_heads + cfg.num_key_value_heads) * (d + 1) * (attention.q_norm is not None)
    products = cfg.num_attention_heads * d * kept(attention.o_proj)
    for users in ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)):
        products += d_model * any(isinstance(m, LoraLinear) for m in users)  # else made again from the norm's input
    products += 2 * wide + wide * isinstance(mlp.down_proj, LoraLinear)
    return norms, products + sum(len(m.lora_A) for m in linears if isinstance(m, LoraLinear))


def _product_weights(layer: nn.Module) -> int:
    """Numbers in the matrices of a layer, those of adapters among them."""
    return sum(p.numel() for p in layer.parameters() if p.dim() == 2)


def _head(decoder: nn.Module, size: Sizes, needs: Sequence[str], product: int) -> tuple[int, int, int]:
    """Bytes that the chunked head keeps, that are alive in its backward pass, and of the slope of its weight.

    product: bytes of a number in the products of that pass. Fewer than 4 ask for copies of what goes into them.
    """
    vocab, d_model = decoder.cfg.vocab_size, decoder.cfg.hidden_size
    tied, rows = decoder.lm_head is None, _trained_rows(decoder)
    table = decoder.embed_tokens if tied else decoder.lm_head
    full = size.learned * vocab * 4
    chunk = min(CHUNK, size.learned) * vocab * 4
    kept = full if full <= tokens._KEEP_BYTES else tokens._KEEP_BYTES // chunk * chunk
    matrix = vocab * d_model * 4
    head = kept + size.learned * (d_model * 4 + 6 * INDEX) + matrix * rows
    slope = matrix * (rows or table.weight.requires_grad)
    at_head = size.learned * d_model * 4 + slope + chunk * (2 if "entropy" in needs else 1)
    if product < 4:  # the slopes of a chunk's logits, and the weight or then its own slope before it is added
        at_head += chunk * product // 4 + matrix * product // 4 * (1 + bool(slope))
    return head, at_head, slope * tied


def _trained_rows(decoder: nn.Module) -> bool:
    """Whether rows of a frozen embedding are trained, so that its matrix is put together anew; of shapes: maybe."""
    if isinstance(decoder.embed_tokens, TokenRows):
        return True
    adapter = adapter_of(decoder)
    return decoder.norm.weight.is_meta and adapter is not None and adapter.lora.tokens == "unseen"
