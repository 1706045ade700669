"""Best-of-n: sample several answers, keep the good ones, learn them by plain cross-entropy.

One round that keeps the right ones is rejection-sampling fine-tuning; several rounds, each of
which samples from the last one's model, are RAFT; one round with many samples, and a `student`, is distillation. The
novelty is in the data: a round ends by writing its records to a file and calling `sft.train`. Bad answers are left
out, never pushed down. Sections 18 and 19 of the book tell the story.

    <run>/round-1/kept/000007.jsonl   the answers that step 7 kept
    <run>/round-1/records.jsonl       all of them: chat messages, with reward and task beside
    <run>/round-1/sft/                the run that learned them
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from posttrain import dist
from posttrain.algorithms import sft
from posttrain.data.rows import Data, Rows, pick, report, tasks
from posttrain.envs.rollout import rollout
from posttrain.errors import ConfigError, RunError
from posttrain.evals.run import evaluate
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.selection import best_of_n
from posttrain.records import Group, Segment, Stop, Trajectory
from posttrain.rewards.base import score
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.base import SamplingParams
from posttrain.sample.torch import TorchSampler
from posttrain.train.checkpoint import write_text
from posttrain.train.demand import Demand, Sampling, longest_rows
from posttrain.train.invariants import check_signal, reward_signal
from posttrain.train.learner import Optim
from posttrain.train.metrics import Metrics, add
from posttrain.train.run import MAY_CHANGE, Result, Run, RunConfig
from posttrain.train.signal import group_metrics


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which answers to a prompt are learned: of those that finished and earn enough, the best."""

    most: int | None = 1
    """Answers per prompt, the highest rewards first, of equals those sampled first. 1: the best of n. None: all."""
    least: float | None = None
    """Reward that an answer needs. 1 keeps right answers alone; None: a hopeless prompt gives its best answer too."""
    distinct: Literal["off", "text", "equations"] = "text"
    """Equal answers to a prompt count once: by their text, or by their equations in order (Yuan et al. 2023)."""

    def __post_init__(self):
        if self.most is not None and self.most < 1:
            raise ConfigError(f"keep.most = {self.most}: at least one answer per prompt, or none to keep them all")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Best-of-n, RAFT, rejection-sampling fine-tuning and distillation."""

    model: str = "base"
    """Model that writes the answers: "base", a run, a Hugging Face folder, or a name on the hub."""
    student: str | None = None
    """Model that learns them. None: the one that wrote them."""
    template: str = "auto"
    """Chat template: "auto" (the model's own), "posttrain", "plain" or "chatml"."""
    data: Data = Data(path="builtin:sums+chains", limit=4000, eval_rows=100)
    """Tasks: a prompt per row, with what the reward needs to grade an answer."""
    reward: str = "auto"
    """"auto" (the task's own verifier), another name of a reward, or your own as file.py:function."""
    keep: Keep = Keep()
    """Which answers are learned."""
    rounds: int = field(default=1, metadata=MAY_CHANGE)
    """How often it is sampled and learned. More than one: RAFT."""
    restart: bool = False
    """Whether each round learns from the first model again (ReST-EM), not from the last one (RAFT)."""
    prompts: int = 16
    """Prompts per step of sampling."""
    group_size: int = 8
    """Samples per prompt: n."""
    steps: int = 20
    """Steps of sampling per round."""
    sampling: SamplingParams = SamplingParams(max_tokens=64)
    """Temperature, cuts and length of the answers; stop ids come from the template."""
    slots: int = field(default=128, metadata=MAY_CHANGE)
    """Answers written side by side: bounds the sampler's memory; the others wait for a free place."""
    batch_size: int = 32
    """Records per optimizer step."""
    epochs: float = 1.0
    """Passes over the records of a round. 0: they are written, and nothing is trained."""
    optim: Optim = Optim(lr=5e-4)
    """Optimizer, anew in each round."""
    lora: Lora = Lora()
    """Low-rank adapters instead of all weights."""
    run: RunConfig = RunConfig(save_every=10)
    """Seed, threads, checkpoints."""

    def __post_init__(self):
        problems = [
            f"{name} = {getattr(self, name)} must be at least 1"
            for name in ("rounds", "prompts", "group_size", "steps", "slots", "batch_size")
            if getattr(self, name) < 1
        ]
        if self.epochs < 0 or (self.epochs == 0 and self.rounds > 1):
            problems.append(f"epochs = {self.epochs} with rounds = {self.rounds}: a later round needs a trained model")
        if self.student is not None and self.rounds > 1:
            problems.append(
                f'rounds = {self.rounds} with student = "{self.student}": later rounds would sample from the student. '
                "Distil in one round, then go on from the result."
            )
        if self.sampling.temperature == 0 and self.group_size > 1:
            problems.append("sampling.temperature = 0 gives the same answer every time: nothing to choose from")
        if problems:
            raise ConfigError("\n".join(problems))


def plan(cfg: Config) -> str:
    """The batch arithmetic of a run, in words, without training."""
    rows = tasks(cfg.data, load(cfg.model, template=cfg.template))
    n = cfg.steps * cfg.prompts
    most = "all that qualify" if cfg.keep.most is None else f"at most {cfg.keep.most}"
    return (
        f"{report(rows)}: {cfg.rounds} round(s) of {cfg.steps} steps of {cfg.prompts} prompts x {cfg.group_size} "
        f"samples; of the {cfg.group_size} answers to each of {n} prompts {most} are kept, and learned in "
        f"{cfg.epochs:g} epoch(s) of {cfg.batch_size} rows a step."
    )


def demand(cfg: Config, rows: Rows, model: nn.Module) -> Demand:
    """What the larger half needs: sampling, or learning answers of full length."""
    length = min(rows.longest + cfg.sampling.max_tokens, model.cfg.max_position_embeddings)
    row = Segment(tokens=(0,) * length, mask=(False,) + (True,) * (length - 1))
    slots = min(cfg.slots, max(cfg.prompts * cfg.group_size, len(rows.held)))
    return Demand(
        trained=(longest_rows("policy", model, Rows([row] * cfg.batch_size, [], ""), cfg),),
        sampling=Sampling(model=model, slots=slots, prompt=rows.longest, length=length),
        steps=cfg.steps * cfg.rounds,
        words=f"{cfg.prompts} prompts x {cfg.group_size} samples",
    )


def train(cfg: Config, run: Run) -> Result:
    """Rounds of sampling, choosing and learning: RAFT, Dong et al. 2023 (arXiv 2304.06767), Algorithm 1.

    L(θ) = - mean over kept answers y* of log π_θ(y* | x),   y* the best of n draws from the model of the round before
    """
    if run.finished:
        return run.result
    run.load({})
    model: Path | None = None
    for number in range(cfg.rounds):
        loaded = load(model or cfg.model, template=cfg.template)
        rows = tasks(cfg.data, loaded)
        rewards = rewards_for(cfg.reward, rows.train)
        sampler, first = TorchSampler(loaded.model, slots=cfg.slots), number * cfg.steps
        folder = run.folder / f"round-{number + 1}"
        if run.done == 0:
            run.note(report(rows))
            run.plan(plan(cfg))
        for step in run.steps(first + cfg.steps):
            prompts = run.took(step, pick(rows.train, step, cfg.prompts, cfg.run.seed))
            groups = rollout(sampler, prompts, n=cfg.group_size, params=cfg.sampling, seed=run.seed(step, "rollout"),
                             template=loaded.template, tokenizer=loaded.tokenizer, version=number)  # fmt: skip
            groups = score(groups, rewards)
            kept = [keep(group, cfg.keep) for group in groups]
            dist.first(lambda: write_records(folder / "kept" / f"{step:06d}.jsonl", kept))  # noqa: B023 - called now
            metrics = group_metrics(groups) | kept_metrics(groups, kept)
            if rows.held and step == first:
                metrics = add(metrics, evaluate(sampler, rows.held, loaded, rewards, cfg.sampling.max_tokens))
            run.log(step, metrics)
            run.keep_samples(step, groups)  # before the check, whose advice is to read them
            run.check(step, *(c for c in check_signal(reward_signal(groups))[0] if c.name == "answers_can_be_scored"))
            run.save(step, {})
        dist.first(lambda: join_records(folder, range(first, first + cfg.steps)))  # noqa: B023 - called now
        if cfg.epochs == 0:
            return run.finish()
        del sampler, loaded
        model = learn(cfg, run, folder, model)
    loaded = load(model, template=cfg.template)
    sampler = TorchSampler(loaded.model, slots=cfg.slots)
    final = evaluate(sampler, rows.held, loaded, rewards, cfg.sampling.max_tokens) if rows.held else {}
    return run.finish(final, model)


def keep(group: Group, rule: Keep) -> list[Trajectory]:
    """The answers of one prompt that are learned, the best first. One without its end teaches no end, so it is out."""
    earned = [None if m.score is None else m.score.value for m in group.members]
    scores = torch.tensor([[0.0 if v is None else v for v in earned]], dtype=torch.float64)
    fit = [
        v is not None and m.stop is Stop.END and bool(m.completion.strip()) and (rule.least is None or v >= rule.least)
        for m, v in zip(group.members, earned, strict=True)
    ]
    mask, kept, seen = torch.tensor([fit]), [], set()
    most = len(fit) if rule.most is None else rule.most
    while len(kept) < most and (i := int(best_of_n(scores, mask))) >= 0:
        mask[0, i] = False
        mark = likeness(group.members[i].completion, rule.distinct)
        if mark is None or mark not in seen:
            kept.append(group.members[i])
            seen.add(mark)
    return kept


_EQUATION = re.compile(r"[-+*/()\d.\s]*\d\s*=\s*-?[\d.]*\d")


def likeness(text: str, distinct: str) -> str | None:
    """What two answers share if they count as one; None where every answer counts."""
    if distinct == "off":
        return None
    found = ["".join(e.split()) for e in _EQUATION.findall(text)] if distinct == "equations" else []
    return "; ".join(found) or text.strip()


def kept_metrics(groups: list[Group], kept: list[list[Trajectory]]) -> Metrics:
    """How hard the choice was, and what it gained."""
    chosen = [m for answers in kept for m in answers]
    texts = [(len({m.completion for m in g.members}), len(g.members)) for g in groups]
    return {
        "selected_share": (len(chosen), sum(n for _, n in texts)),
        "selected_prompt_share": (sum(map(bool, kept)), len(groups)),
        "selected_reward": (sum(m.score.value for m in chosen), len(chosen)),
        "distinct_share": (sum(k for k, _ in texts), sum(n for _, n in texts)),
    }


def write_records(path: Path, kept: list[list[Trajectory]]) -> None:
    """Kept answers as rows of chat messages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "messages": [{"role": m.role, "content": m.content} for m in t.messages],
            "reward": t.score.value,
            "task": t.task.id,
        }
        for answers in kept
        for t in answers
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def join_records(folder: Path, steps: range) -> None:
    """All records of a round in one file. Raises RunError where nothing was kept."""
    text = "".join((folder / "kept" / f"{step:06d}.jsonl").read_text() for step in steps)
    if not text:
        raise RunError(
            f"{folder}: of {len(steps)} steps of answers none was kept, so there is nothing to learn. samples.jsonl "
            "shows answers and rewards: lower keep.least, raise sampling.max_tokens if they are cut, or begin with a "
            "model that sometimes succeeds."
        )
    write_text(folder / "records.jsonl", text)


def learn(cfg: Config, run: Run, folder: Path, model: Path | None) -> Path:
    """The model that `sft.train` makes of a round's records; at once where it was made before."""
    start = str(cfg.student or cfg.model if model is None or cfg.restart else model)
    settings = sft.Config(
        model=start,
        template=cfg.template,
        data=Data(path=str(folder / "records.jsonl"), max_len=cfg.data.max_len),
        batch_size=cfg.batch_size,
        epochs=cfg.epochs,
        optim=cfg.optim,
        lora=cfg.lora,
        run=replace(cfg.run, seed=run.seed(int(folder.name.removeprefix("round-")), "sft")),
    )
    with Run.open(folder / "sft", settings, f"posttrain train sft --out {folder / 'sft'}", parent=start) as inner:
        return sft.train(settings, inner).model
