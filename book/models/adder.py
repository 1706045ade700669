"""The model that section 23 trains in the page: sums of four digits, 0.1 million parameters, two layers.

`python -m book.models.adder` makes book/models/adder/ (some minutes on one core). It is supervised on answers of three
kinds: a guess straight away, two partial sums and then the total, and a walk that goes wrong and goes on for long. So
it begins right in three answers of ten, and what reinforcement learning finds was there already: working it out.

    4+9+7+5=25        a guess, right or nearly
    4+9+7+5=13,20,25  worked out
    4+9+7+5=13,19,21,22,24  a walk

A verifier reads the last number. Characters are tokens.
"""

import argparse
import json
import random
from pathlib import Path

import torch

from posttrain import rng
from posttrain.batch import TokenBatch, collate, weigh
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.hf_format import save_folder
from posttrain.objectives.average import Average
from posttrain.records import Segment
from posttrain.train.learner import Learner, Optim, Outputs, Part, Term
from posttrain.train.schedule import Schedule

TOKENS = ("<pad>", "<end>", *"0123456789", "+", "=", ",", ";")
"""By id. Sixteen, so that rows of the head fill whole vectors; the last one never occurs."""
SIZE = ModelConfig(
    model_type="llama", vocab_size=len(TOKENS), hidden_size=64, intermediate_size=192, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=40,
    extra={"eos_token_id": 1, "pad_token_id": 0},
)  # fmt: skip
SHARES = {"guess": 0.5, "worked": 0.3, "walk": 0.2}
ROWS = 256
FOLDER = Path(__file__).parent / "adder"


def problem(draw: random.Random) -> list[int]:
    """Four digits."""
    return [draw.randint(1, 9) for _ in range(4)]


def answer(digits: list[int], draw: random.Random) -> list[int]:
    """The numbers that a demonstrator writes, the last of which counts."""
    sums = [sum(digits[: n + 1]) for n in range(1, 4)]
    match draw.choices(list(SHARES), SHARES.values())[0]:
        case "guess":
            return [max(2, sums[-1] + draw.choice((0, 0, 0, -2, -1, 1, 2, 3)))]
        case "worked":
            slip = draw.choice((0, 0, 0, 0, 0, -1, 1))
            return [sums[0], sums[1] + slip, sums[2] + slip]
        case _:
            found = [sums[0]]
            while len(found) < 6:
                found.append(found[-1] + draw.randint(1, 5))
            return found[: draw.randint(4, 6)]


def row(seed: int, number: int) -> Segment:
    """A problem and an answer, of which the answer is learned."""
    draw = rng.python(seed, "adder", number)
    digits = problem(draw)
    asked = encode("+".join(map(str, digits)) + "=")
    said = [*encode(",".join(map(str, answer(digits, draw)))), 1]
    return Segment(tokens=(*asked, *said), mask=(False,) * len(asked) + (True,) * len(said))


def encode(text: str) -> list[int]:
    """Ids of characters."""
    return [TOKENS.index(c) for c in text]


def cross_entropy(out: Outputs, b: TokenBatch) -> tuple[list[Term], dict]:
    """-log π of every token of the answer."""
    return [Term("lm", -out.logp, b.weights["token"])], {}


def train(steps: int, seed: int) -> Decoder:
    """From fresh weights."""
    model = Decoder(SIZE).initialise(seed)
    learner = Learner(model, Optim(lr=4e-3, schedule=Schedule(kind="linear", warmup=50)), total=steps)
    for step in range(steps):
        batch = weigh(collate([row(seed, step * ROWS + i) for i in range(ROWS)]), Average("token"))
        metrics = learner.step(Part(batch, cross_entropy))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {metrics['loss'][0]:.4f}", flush=True)
    return model


@torch.no_grad()
def shares(model: Decoder, problems: int = 500, seed: int = 1) -> dict[str, float]:
    """Of sampled answers: the share that is right, in all and of each number of numbers; a plain loop."""
    draw, right, kinds = rng.python(seed, "adder held out"), 0, {}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(problems):
        digits = problem(draw)
        tokens = encode("+".join(map(str, digits)) + "=")
        start = len(tokens)
        while len(tokens) < start + 24 and tokens[-1] != 1:
            logits = model.logits(model(torch.tensor([tokens]))[0, -1])
            tokens.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        numbers = "".join(TOKENS[t] for t in tokens[start:] if t != 1).split(",")
        good = numbers[-1] == str(sum(digits))
        right += good
        n, g = kinds.get(len(numbers), (0, 0))
        kinds[len(numbers)] = (n + 1, g + good)
    found = {f"{k} numbers": f"{g} of {n}" for k, (n, g) in sorted(kinds.items())}
    return {"right": right / problems, **found}


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER)
    a = parser.parse_args()
    torch.set_num_threads(1)
    model = train(a.steps, a.seed)
    save_folder(model, a.out, dtype=torch.float16)
    found = {"command": f"python -m book.models.adder --steps {a.steps} --seed {a.seed}", **shares(model)}
    (a.out / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    (a.out / "vocabulary.json").write_text(json.dumps(TOKENS) + "\n")
    print(found)


if __name__ == "__main__":
    main()
