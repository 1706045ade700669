"""The floor of a job: the time that its matrix products alone would take, at the best rate of torch for their shapes.
With --plain, at that of `torch.mm` itself, where `posttrain.products` has a faster way.

    python benchmarks/floor.py grpo small --threads 1     (compare.py starts it and talks to it, see pace.py)

Counted is the least work that any program must do: real tokens only, a shared prompt once, logits only where a token is
learned or drawn, log-probabilities of sampled tokens from the sampler. Products of one input are one product (q, k and
v; gate and up). Each layer has weights of its own, so small batches read them from memory, as models do. Attention's
own products, norms, softmax and the optimizer are left out: no program is at 100 %, unless it does less.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import inputs
import torch
from pace import Pace, read_plan, synchronize
from torch import Tensor

from posttrain import products

HEAD_ROWS = 1024  # logits of more rows are made in turns, as any program with a large vocabulary must
SHOWN = 8  # of many equal passes so many are timed


@dataclass(frozen=True)
class Pass:
    """One pass through the model."""

    tokens: int
    heads: int
    """Positions that need logits."""
    backward: bool = False
    times: int = 1


def passes(job: str, rows: list) -> list[Pass]:
    """What a step on these rows must compute at least."""
    what = inputs.JOBS[job]
    if what.kind == "text":
        tokens = sum(map(len, rows))
        return [Pass(tokens, tokens - len(rows), backward=True)]
    if what.kind == "pairs":
        tokens = sum(len(part) for row in rows for part in row["ids"])
        answers = sum(len(part) for row in rows for part in row["ids"][1:])
        return [Pass(tokens, 0 if job == "rm" else answers, backward=True)]
    at_once = int(job.removeprefix("sample-")) if job.startswith("sample-") else len(rows) * what.samples
    asked = sum(len(row["ids"]) for row in rows)
    answers = len(rows) * what.samples
    turns = answers // at_once
    generate = [
        Pass(asked // turns, len(rows) // turns, times=turns),
        Pass(at_once, at_once, times=turns * (what.answer - 1)),
    ]
    everything = Pass(asked + answers * (what.answer - 1), answers * what.answer)
    learn = Pass(everything.tokens, everything.heads, backward=True, times=what.epochs)
    values = Pass(everything.tokens, 0)
    match job:
        case "grpo":
            return [*generate, learn]
        case "rloo":
            return [*generate, everything, learn]
        case "ppo":
            return [*generate, everything, values, learn, Pass(values.tokens, 0, backward=True, times=what.epochs)]
    return generate


class Products:
    """Random weights of every product of a model, and a pass through them."""

    def __init__(self, size: str, device: str, dtype: torch.dtype, mm: Callable[..., Tensor]):
        self.mm = mm
        s = inputs.SIZES[size]
        inner = s.heads * s.head_dim
        pairs = [
            (s.dims, inner + 2 * s.kv_heads * s.head_dim),
            (inner, s.dims),
            (s.dims, 2 * s.inner),
            (s.inner, s.dims),
        ]
        self.layers = [self._weight(*p, device, dtype) for _ in range(s.layers) for p in pairs]
        self.head = self._weight(s.dims, s.vocab, device, dtype)
        self.device, self.dtype = device, dtype
        self._memory: dict[tuple, Tensor] = {}

    @staticmethod
    def _weight(wide: int, out: int, device: str, dtype: torch.dtype) -> Tensor:
        return torch.randn(out, wide, device=device).mul_(0.02).to(dtype)

    def seconds(self, p: Pass) -> float:
        """Of all its times, from a few of them."""
        count = min(p.times, SHOWN)
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(count):
            self._run(p)
        synchronize(self.device)
        return (time.perf_counter() - began) * p.times / count

    def _run(self, p: Pass) -> None:
        for weight in self.layers:
            self._product(weight, p.tokens, p.backward)
        for start in range(0, p.heads, HEAD_ROWS):
            self._product(self.head, min(HEAD_ROWS, p.heads - start), p.backward)

    def _product(self, weight: Tensor, rows: int, backward: bool) -> None:
        """x Wᵀ, and for the way back g W and gᵀ x, into memory that is there already."""
        out, wide = weight.shape
        x, y = self._space("x", rows, wide), self._space("y", rows, out)
        self.mm(x, weight.t(), out=y)
        if backward:
            self.mm(y, weight, out=self._space("dx", rows, wide))
            self.mm(y.t(), x, out=self._space("dw", out, wide))

    def _space(self, name: str, *shape: int) -> Tensor:
        key = (name, *shape)
        if key not in self._memory:
            self._memory[key] = torch.ones(shape, device=self.device, dtype=self.dtype)
        return self._memory[key]


def main() -> None:
    """Arguments as compare.py gives them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=inputs.JOBS)
    parser.add_argument("size", choices=inputs.SIZES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--plain", action="store_true", help="products by torch.mm, as everybody calls it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = read_plan(inputs.data_files(args.size, args.job, args.steps, args.seed)[1])
    what = inputs.JOBS[args.job]
    pace = Pace(args.warmup, args.device)
    work = Products(
        args.size,
        args.device,
        getattr(torch, args.precision),
        torch.mm if args.plain else partial(products.by_onednn, torch.mm),
    )
    for step in range(args.steps):
        pace.begin(step)
        seconds = sum(map(work.seconds, passes(args.job, plan[step]["rows"])))
        generated = len(plan[step]["rows"]) * what.samples * what.answer
        pace.end(step, generated or plan[step]["tokens"], seconds=seconds)


if __name__ == "__main__":
    main()
