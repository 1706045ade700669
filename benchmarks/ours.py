"""One job of ours in a process of its own: the very `train()` that users call, paced step by step.

    python benchmarks/ours.py sft tiny --threads 1        (compare.py starts it and talks to it, see pace.py)

A `Run` whose `steps` waits for the word before each step is all that differs from `posttrain train`: reading data,
logging and samples.jsonl are inside the time. Under torchrun its processes train as one.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import inputs
import torch
from pace import Pace, read_plan

from posttrain import device, dist
from posttrain.algorithms import group, ppo, preference, reference, reward_model, sft
from posttrain.models.load import load
from posttrain.objectives.average import Average
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.rng import fold
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Optim
from posttrain.train.run import Run, RunConfig

MODULES = {"sft": sft, "rm": reward_model, "dpo": preference, "grpo": group, "rloo": group, "ppo": ppo}
OPTIM = Optim(lr=1e-4, beta2=0.999)  # what the other side is given too
REWARD = f"{Path(__file__).with_name('rewards.py')}:of_trajectory"


class SharedPace(Pace):
    """The pace of processes that train as one: the first talks and measures, the others follow."""

    def say(self, **line) -> None:
        """One line, by the first."""
        if dist.rank() == 0:
            super().say(**line)

    def told(self) -> bool:
        """What the first process was told."""
        return dist.first(super().told)


class PacedRun(Run):
    """A run that takes a step when it is told to."""

    pace: Pace
    work: list[dict]
    probing = False
    parts: dict = {}
    start: dict = {}

    def load(self, parts, default=None):
        """Remember the learners, and for a probe where their weights began."""
        self.parts = dict(parts)
        self.pace.facts["parameters"] = sum(p.numel() for x in parts.values() for p in x.model.parameters())
        if self.probing:
            self.start = {name: p.detach().clone() for name, p in parts["policy"].model.named_parameters()}
        return super().load(parts, default)

    def steps(self, n: int) -> Iterator[int]:
        """The steps, each after the word."""
        for step in super().steps(n):
            self.generated, self.loss = 0, None
            self.pace.begin(step)
            yield step
            more = {"moved": self.moved(), "updates": self.pace.updates.most} if self.probing else {}
            self.pace.end(step, self.generated or self.work[step]["tokens"], loss=self.loss, **more)

    def log(self, step, metrics):
        """Remember the loss."""
        values = super().log(step, metrics)
        self.loss = values.get("loss")
        return values

    def keep_samples(self, step, items):
        """Count what was generated."""
        items = list(items)
        self.generated = sum(m.length for g in items for m in getattr(g, "members", ()))
        super().keep_samples(step, items)

    def moved(self) -> float:
        """‖weights now - weights then‖."""
        now = dict(self.parts["policy"].model.named_parameters())
        return float(sum((now[name].detach() - w).double().square().sum() for name, w in self.start.items()) ** 0.5)


def config(
    job: str, size: str, path: Path, *, steps: int, seed: int, threads: int, precision: str, device: str = "cpu"
):
    """The config of a job, as a user would write it."""
    what, optim = inputs.JOBS[job], replace(OPTIM, precision=precision)
    common = {
        "model": str(inputs.model_folder(size, scalar=job == "rm")),
        "data": inputs.data(what.kind, path),
        "steps": steps,
        "eval_every": 0,
        "optim": optim,
        "run": RunConfig(seed=seed, threads=threads, device=device, save_every=10**9),
    }
    match job:
        case "sft":
            return sft.Config(**common, batch_size=what.rows)
        case "rm":
            return reward_model.Config(**common, batch_size=what.rows, centering=0.0)
        case "dpo":
            return preference.Config(**common, batch_size=what.rows)
    common |= {"reward": REWARD, "prompts": what.rows, "group_size": what.samples}
    common |= {"sampling": SamplingParams(max_tokens=what.answer)}
    match job:
        case "grpo":
            return group.Config(**common, objective=Objective(average=Average("token")))
        case "rloo":
            return group.Config(**common, objective=PRESETS["rloo"])
        case _:
            critic = {"epochs": what.epochs, "minibatches": 1, "critic_optim": optim}
            return ppo.Config(**common, **critic, objective=PRESETS["ppo"])


def time_reference(pace: Pace, rows_per_step: int) -> None:
    """Let DPO's pass over the reference, made once before training, be told: seconds for the rows of one step."""
    inner = reference.reference_logps

    def timed(model, rows, micro_tokens):
        began = time.perf_counter()
        found = inner(model, rows, micro_tokens)
        pace.facts["once"] = (time.perf_counter() - began) * rows_per_step / len(rows)
        return found

    reference.reference_logps = timed


def train(job: str, args: argparse.Namespace, pace: Pace) -> None:
    """Run a training loop until compare.py has enough."""
    path, plan = inputs.data_files(args.size, job, args.steps, args.seed)
    same = {name: getattr(args, name) for name in ("steps", "seed", "threads", "precision", "device")}
    cfg = config(job, args.size, path, **same)
    if job == "dpo":
        time_reference(pace, inputs.JOBS[job].rows)
    folder = Path(dist.first(lambda: tempfile.mkdtemp(prefix="run-", dir=inputs.SCRATCH)))
    try:
        run = PacedRun.open(folder, cfg)
        run.pace, run.probing = pace, args.probe
        run.work = read_plan(plan)
        with run:
            MODULES[job].train(cfg, run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sample(job: str, args: argparse.Namespace, pace: Pace) -> None:
    """Generate answers of fixed length, so many sequences at a time."""
    what, at_once = inputs.JOBS[job], int(job.removeprefix("sample-"))
    plan = read_plan(inputs.data_files(args.size, job, args.steps, args.seed)[1])
    device.use(args.device)
    loaded = load(inputs.model_folder(args.size))
    sampler = TorchSampler(loaded.model, slots=at_once, dtype=getattr(torch, args.precision))
    pace.facts["parameters"] = sum(p.numel() for p in loaded.model.parameters())
    params = SamplingParams(max_tokens=what.answer)
    for step in range(args.steps):
        batch = [row["ids"] for row in plan[step]["rows"]]
        seeds = [fold(args.seed, step, i) for i in range(len(batch))]
        tokens = 0
        pace.begin(step)
        for start in range(0, len(batch), at_once):
            part = slice(start, start + at_once)
            tokens += sum(len(c.tokens) for c in sampler.generate(batch[part], params, seeds[part]))
        pace.end(step, tokens)


def main() -> None:
    """Arguments as compare.py gives them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=inputs.JOBS)
    parser.add_argument("size", choices=inputs.SIZES)
    parser.add_argument("--setting", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--probe", action="store_true", help="say losses and how far the weights moved")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with dist.joined():
        (sample if args.job.startswith("sample-") else train)(args.job, args, SharedPace(args.warmup, args.device))


if __name__ == "__main__":
    main()
