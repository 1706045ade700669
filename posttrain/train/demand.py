"""What a run asks of a machine: its largest step, the bytes alive at each of its moments, and what would lower them.

Each method tells its demand (`algorithms/*.py: demand`), from real models before the first step or from mere shapes for
`posttrain plan`; everything here is arithmetic on it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from posttrain import dist
from posttrain.batch import Together, TokenBatch, collate, collate_pairs
from posttrain.data.rows import Rows
from posttrain.errors import OutOfMemory
from posttrain.models.lora import adapter_of
from posttrain.train import memory
from posttrain.train.machine import Machine, amount, machine
from posttrain.train.memory import cache_bytes, decoding_bytes, first_piece, saved, sizes, too_large, weight_bytes

if TYPE_CHECKING:
    from posttrain.train.learner import Learner, Optim
    from posttrain.train.run import Run


LASTING = ("weights", "optimizer", "reference", "decoding")
"""Parts that stay from step to step."""
UNUSED = {False: (70 * 2**20, 0.05), True: (160 * 2**20, 0.15)}
"""Unused pages, and more of them per byte that comes and goes; more where a run samples. Fitted to what
`benchmarks/memory.py` measures on Linux: its runs took 0.84 to 1.10 times what is foretold with it."""
PROCESS = 90 * 2**20
"""What torch loads when training begins: its optimizers import its compiler, and that a library of algebra."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model that a run trains."""

    name: str
    model: nn.Module
    batch: TokenBatch
    """The largest optimizer step that the data can make, or enough of it to fill a micro-batch."""
    rows: int
    """Rows of an optimizer step."""
    optim: "Optim"
    needs: tuple[str, ...] = ("logp",)
    """Outputs that the loss takes."""
    together: Together = "row"
    """What it needs side by side."""
    settings: str = "optim"
    """Where `optim` stands in the config."""

    def piece(self) -> tuple[TokenBatch, int]:
        """The largest micro-batch, and how many there are in the batch."""
        return first_piece(self.batch, self.optim.micro_tokens, self.together)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the sampler of a run holds."""

    model: nn.Module
    slots: int
    prompt: int
    """Tokens of the longest prompt."""
    length: int
    """Tokens of the longest prompt with its answer."""
    models: int = 1
    """How many write together, each with a cache of its own: two in a mixture."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """All that a run keeps in memory, and its largest step."""

    trained: tuple[Trained, ...]
    references: tuple[nn.Module, ...] = ()
    """Frozen models beside; with adapters they share all weights with what is trained."""
    sampling: Sampling | None = None
    steps: int | None = None
    """Steps of the run, where it is known."""
    updates: int = 1
    """Optimizer steps of each model per step of the run."""
    drops_gradients: bool = False
    """Whether a model's gradients are freed after its step, so that they never stand beside another's."""
    words: str = ""
    """The rows of a step, such as "8 prompts x 16 samples"."""


class Moment(NamedTuple):
    """A moment of a step, with the bytes of everything that is alive then."""

    name: str
    parts: dict[str, int]

    @property
    def tensors(self) -> int:
        """All parts together, as torch counts them."""
        return sum(self.parts.values())

    @property
    def unused(self) -> int:
        """What the allocator holds besides: pages of freed tensors that the next ones did not fit into."""
        least, share = UNUSED["decoding" in self.parts]
        return least + int(share * sum(size for part, size in self.parts.items() if part not in LASTING))

    @property
    def total(self) -> int:
        """What is taken from the machine."""
        return self.tensors + self.unused + PROCESS


class Remedy(NamedTuple):
    """A setting that lowers the demand."""

    setting: str
    """As in the config: "optim.micro_tokens = 4096"."""
    peak: int
    """Bytes at the highest moment with it."""
    less: int
    """How many fewer these are."""


def moments(demand: Demand) -> list[Moment]:
    """What is alive at each moment of a run, in the order in which they come."""
    gradients = {t.name: weight_bytes(t.model, trained=True) for t in demand.trained}
    base = {
        "weights": sum(weight_bytes(t.model) for t in demand.trained),
        "optimizer": 2 * sum(gradients.values()),
        "reference": sum(weight_bytes(m) for m in demand.references if adapter_of(m) is None),
    }
    found = []
    if demand.sampling:
        precision = demand.trained[-1].optim.precision
        base["decoding"] = decoding_bytes(demand.sampling.model, precision)
        kept = 0 if demand.drops_gradients else sum(gradients.values())
        asked = demand.sampling
        cache = asked.models * cache_bytes(asked.model, asked.slots, asked.length)
        sampling = {"gradients": kept, "cache": cache, "sampling": _sampling_bytes(demand.sampling)}
        found.append(Moment("rollout", base | sampling))
    for t in demand.trained:
        others = 0 if demand.drops_gradients else sum(gradients.values()) - gradients[t.name]
        found.append(_backward(t, base, others, gradients[t.name]))
    last = max(gradients.values()) if demand.drops_gradients else sum(gradients.values())
    found.append(Moment("update", base | {"gradients": last}))
    return found


def peak(demand: Demand) -> Moment:
    """The moment at which most is alive."""
    return max(moments(demand), key=lambda m: m.total)


def _backward(t: Trained, base: dict[str, int], others: int, own: int) -> Moment:
    """The highest point of a forward and backward pass: where it begins, or where all gradients are there."""
    piece, n = t.piece()
    size = sizes(piece)
    s = saved(t.model, size, t.needs, precision=t.optim.precision, recompute=t.optim.recompute)
    rows = memory.CELL * t.rows * size.longest + memory.CELL_WORK * size.rows * size.longest
    parts = {"layers": s.layers, "attention": s.attention, "head": s.head, "passing": s.passing, "rows": rows}
    begin = base | {"gradients": others + own * (n > 1)} | parts
    decoder = getattr(t.model, "decoder", t.model)
    depth = decoder.cfg.num_hidden_layers
    last = weight_bytes(decoder.layers[0], trained=True)
    bottom = {"layers": s.layers // depth, "attention": s.attention // depth, "passing": s.passing, "rows": rows}
    end = base | {"gradients": others + own - last} | bottom
    return Moment(f"training step of the {t.name}", max(begin, end, key=lambda parts: sum(parts.values())))


def _sampling_bytes(s: Sampling) -> int:
    """What the sampler computes with beside its cache: a pass over prompts, or the choice of a token in every slot."""
    cfg, e = s.model.cfg, s.model.norm.weight.element_size()  # adapters put the embedding together, by a message
    tokens = min(s.slots * s.prompt, max(16384, s.prompt))
    heads = (cfg.num_attention_heads + 2 * cfg.num_key_value_heads) * cfg.head_dim
    prompts = tokens * e * max(2 * cfg.hidden_size + 3 * cfg.intermediate_size, 2 * cfg.hidden_size + 3 * heads)
    choice = s.slots * cfg.vocab_size * (e + 4 + 8)  # logits, probabilities, their sums in float64
    return max(prompts, choice)


# --- the largest step -------------------------------------------------------------------------------------------------


def longest_rows(name: str, model: nn.Module, rows: Rows, cfg: Any) -> Trained:
    """What learns from the longest rows. cfg: has `batch_size` and `optim`."""
    batch = collate(sorted(rows.train, key=lambda s: -len(s.tokens))[: cfg.batch_size])
    return Trained(name=name, model=model, batch=batch, rows=cfg.batch_size, optim=cfg.optim)


def longest_pairs(name: str, model: nn.Module, rows: Rows, cfg: Any, needs: tuple[str, ...]) -> Trained:
    """What learns from the longest pairs. cfg: has `batch_size` and `optim`."""
    chosen = sorted((r.pair for r in rows.train), key=lambda pair: -max(len(s.tokens) for s in pair))[: cfg.batch_size]
    return Trained(name=name, model=model, batch=collate_pairs(chosen), rows=2 * cfg.batch_size, needs=needs,
                   together="group", optim=cfg.optim)  # fmt: skip


def longest_rankings(name: str, model: nn.Module, rows: Rows, cfg: Any, needs: tuple[str, ...]) -> Trained:
    """What learns from the rankings of most tokens. cfg: has `batch_size` and `optim`."""
    most = sorted((r.answers for r in rows.train), key=lambda said: -sum(len(s.tokens) for s in said))[: cfg.batch_size]
    segments, group = [s for said in most for s in said], [i for i, said in enumerate(most) for _ in said]
    return Trained(name=name, model=model, batch=collate(segments, group=group), rows=len(segments), needs=needs,
                   together="group", optim=cfg.optim)  # fmt: skip


def rollouts(cfg: Any, rows: Rows, model: nn.Module) -> tuple[TokenBatch, Sampling]:
    """The rows of a step in which all answers to the longest prompt are as long as they may be, and their sampler.

    cfg: has `prompts`, `group_size`, `minibatches`, `slots` and `sampling`. Of very large steps the first four million
    tokens.
    """
    context = model.cfg.max_position_embeddings
    length, samples = min(rows.longest + cfg.sampling.max_tokens, context), cfg.group_size
    n = min(-(-cfg.prompts // cfg.minibatches) * samples, max(1, 4_000_000 // length))
    row = torch.arange(n)
    mask = (torch.arange(length) >= rows.longest).expand(n, -1)
    batch = TokenBatch(
        tokens=torch.where(mask, (row % samples)[:, None] % model.cfg.vocab_size, 0),  # only the prompt is shared
        attend=torch.ones_like(mask),
        mask=mask,
        trajectory=row,
        group=row // samples,
        temperature=torch.ones(n),
    )
    slots = min(cfg.slots, max(cfg.prompts * samples, len(rows.held)))
    width = min(-(-length // 64) * 64, context)
    return batch, Sampling(model=model, slots=slots, prompt=rows.longest, length=width)


# --- does it fit ------------------------------------------------------------------------------------------------------


def probe(run: "Run", demand: Demand, *learners: "Learner") -> None:
    """Before the first step: refuse a run that cannot fit, as far as `run.probe` asks for it.

    learners: those of `demand.trained`. Raises OutOfMemory. Weights, optimizers and random state stay as they are.
    """
    run.plan(in_words(demand))
    if run.settings.probe == "off":
        return
    dist.first(lambda: check_fits(demand))
    if run.settings.probe == "step":
        for t, learner in zip(demand.trained, learners, strict=True):
            learner.probe(t.batch, t.needs, t.together)


def in_words(demand: Demand) -> str:
    """The arithmetic of a run in a sentence or two."""
    most = peak(demand)
    steps = "" if demand.steps is None else f"{demand.steps} steps of "
    return (
        f"{steps}{demand.words}, {demand.updates} optimizer step(s) each. Most memory is needed at the {most.name}: "
        f"about {amount(most.total)}."
    )


def check_fits(demand: Demand, here: Machine | None = None) -> None:
    """Raise OutOfMemory if the highest moment needs more than there is beside the weights, which are loaded already.

    Several processes on one machine share its memory; moments and gradients are cut over all processes of the run.

    here: the memory to compare with; default: that of the device that holds the first model.
    """
    here = here or machine(next(demand.trained[0].model.parameters()).device.type)
    highest = peak(demand)
    needed = highest.total - highest.parts["weights"] - highest.parts["reference"]
    shards = highest.parts["optimizer"] + highest.parts["gradients"]
    needed = (needed - shards + shards // dist.world()) * dist.local_world()
    if here is None or needed <= here.free:
        return
    largest = " ".join(
        too_large(t.batch, t.optim.micro_tokens, t.together, f"{t.settings}.micro_tokens") for t in demand.trained
    )
    raise OutOfMemory(
        f"the {highest.name} would need about {amount(needed)} beside the weights, and of {amount(here.total)} "
        f"{here.name} only {amount(here.free)} are free. {largest} `posttrain plan` with this config shows what each "
        'setting would save; run.probe = "off" begins nevertheless.'
    )


def remedies(cfg: Any, demand_of: Callable[[Any], Demand]) -> Iterator[Remedy]:
    """Settings that would lower the highest moment by a hundredth or more, each taken alone.

    demand_of: from a changed config.
    """
    before = demand_of(cfg)
    now = peak(before).total
    for key, value in _changes(cfg, before):
        then = peak(demand_of(_changed(cfg, key.split("."), value))).total
        if then < 0.99 * now:
            yield Remedy(f"{key} = {value}".replace("True", "true"), then, now - then)


def _changes(cfg: Any, demand: Demand) -> Iterator[tuple[str, Any]]:
    for t in demand.trained:
        size = sizes(t.piece()[0])
        unit = 2 * size.longest if t.together == "group" else size.longest
        for tokens in sorted({max(unit, size.real // 2), unit}, reverse=True):
            if tokens < size.real:
                yield f"{t.settings}.micro_tokens", tokens
        if not t.optim.recompute:
            yield f"{t.settings}.recompute", True
    if not cfg.lora.rank:
        yield "lora.rank", 16
    if demand.sampling and demand.sampling.slots > 1:
        yield "slots", demand.sampling.slots // 2


def _changed(cfg: Any, keys: list[str], value: Any) -> Any:
    assert is_dataclass(cfg)
    below = _changed(getattr(cfg, keys[0]), keys[1:], value) if keys[1:] else value
    return replace(cfg, **{keys[0]: below})
