"""How cost grows: tokens per second at twice the rows, the length, the width, the layers and the sequences.

    python benchmarks/scaling.py              a table with bars, about two minutes on one idle core

Each line is the median of a few steps beside the rate that the matrix products alone would reach if they ran as fast as
in the first line (work per token over work per token); where the bar bends away from it, the last column says why.
"""

import argparse
import statistics
import time
from dataclasses import replace

import inputs
import torch

from posttrain.batch import collate, weigh
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.objectives.average import Average
from posttrain.records import Segment
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Learner, Optim, Part, Term

STEPS = 5


def work(cfg: ModelConfig, length: int) -> float:
    """Multiplications per token of one forward pass: projections, head, and attention over half the length."""
    heads, shared, d = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    layer = cfg.hidden_size * d * (2 * heads + 2 * shared) + 3 * cfg.hidden_size * cfg.intermediate_size
    return cfg.num_hidden_layers * (layer + heads * d * length) + cfg.vocab_size * cfg.hidden_size


def training(cfg: ModelConfig, rows: int, length: int) -> float:
    """Tokens per second of optimizer steps on rows of one length."""
    learner = Learner(Decoder(cfg).initialise(1), Optim(), 100)
    g = torch.Generator().manual_seed(0)
    mask = (False,) + (True,) * (length - 1)
    rates = []
    for _ in range(STEPS + 1):
        ids = torch.randint(7, cfg.vocab_size, (rows, length), generator=g).tolist()
        batch = weigh(collate([Segment(tokens=tuple(row), mask=mask, logp=()) for row in ids]), Average("token"))
        began = time.perf_counter()
        learner.step(Part(batch, lambda out, b: ([Term("nll", -out.logp, b.weights["token"])], {})))
        rates.append(rows * length / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def sampling(cfg: ModelConfig, sequences: int, length: int) -> float:
    """Tokens per second of answers of one length."""
    sampler = TorchSampler(Decoder(cfg).initialise(1), slots=sequences)
    rates = []
    for step in range(STEPS + 1):
        began = time.perf_counter()
        sampler.generate([[7, 8, 9, 10]] * sequences, SamplingParams(max_tokens=length), range(step, step + sequences))
        rates.append(sequences * length / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    base = inputs.SIZES["tiny"].config
    print(f"{'':>34}  tokens/s  {'':40}  of what the first line's work per token promises")
    for title, rate, lines in (
        ("training", training, list(train_lines(base))),
        ("sampling", sampling, list(sample_lines(base))),
    ):
        first = None
        for name, cfg, n, length, why in lines:
            got = rate(cfg, n, length)
            first = first or got * work(cfg, length)
            share = got * work(cfg, length) / first
            bar = "█" * round(20 * min(share, 2.0))
            print(f"{title:>9} {name:>24}  {got:8.0f}  {bar:40}  {share:4.0%}  {why}", flush=True)


def train_lines(base: ModelConfig):
    """(name, model, rows, length, why the bar bends)."""
    yield "16 rows x 64", base, 16, 64, ""
    yield "2 x rows", base, 32, 64, "fixed costs of a step (optimizer, calls) fall on more tokens"
    yield "4 x rows", base, 64, 64, ""
    yield "2 x length", base, 16, 128, "the same, and attention runs over longer rows at its own, lower rate"
    yield "4 x length", base, 16, 256, ""
    yield "8 x length", base, 16, 512, ""
    wide = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 12, "num_key_value_heads": 6}
    yield "2 x width", replace(base, **wide), 16, 64, "larger products are nearer to the processor's peak"
    yield "2 x layers", replace(base, num_hidden_layers=10), 16, 64, ""
    yield "2 x vocabulary", replace(base, vocab_size=8192), 16, 64, "the head has softmax beside its products"


def sample_lines(base: ModelConfig):
    """(name, model, sequences, length, why the bar bends)."""
    why = {
        1: "every token reads all weights",
        8: "and here eight share the reading",
        256: "products are near their peak",
    }
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        yield f"{n} sequence{'s' * (n > 1)} x 64", base, n, 64, why.get(n, "")
    yield "64 x 128", base, 64, 128, "attention reads a cache that grows"
    yield "64 x 256", base, 64, 256, ""
    yield "64 x 512", base, 64, 512, ""


if __name__ == "__main__":
    main()
