"""What a model can do on a set of tasks: greedy accuracy, pass@1 and pass@k with intervals, and how its answers end.

Answering and counting are apart, so that the same answers can be counted under another reading (cut at the first line,
another reward). An answer is right where its score is 1 or more; one that could not be scored is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from posttrain import rng
from posttrain.errors import ConfigError, DataError
from posttrain.evals.run import answer
from posttrain.evals.stats import Interval, bootstrap, wilson
from posttrain.models.load import Loaded
from posttrain.objectives.selection import unbiased_pass_at_k
from posttrain.records import Group, Message, Stop, Task, Trajectory
from posttrain.rewards.base import Rewards, score
from posttrain.sample.base import Sampler


@dataclass(frozen=True)
class Answers:
    """Scored answers to the same tasks: one greedy answer each, and k sampled ones."""

    greedy: list[Group]
    sampled: list[Group]


@dataclass(frozen=True)
class Measured:
    """Figures of one set of tasks. The unit of every interval is the task."""

    tasks: int
    k: int
    greedy: Interval
    """Share of greedy answers that are right; Wilson's interval."""
    pass_1: Interval
    """Mean over tasks of the share of sampled answers that are right; bootstrap over tasks."""
    pass_k: Interval
    """Share of tasks with a right one among k sampled answers (Chen et al. 2021, eq. 1); bootstrap over tasks."""
    reward: float
    """Mean reward of the greedy answers."""
    stop_share: float
    """Share of sampled answers that end with a stop token, not at the length limit."""
    length: float
    """Mean number of tokens of a sampled answer, its stop token included."""
    unscored: int
    """Answers, greedy and sampled, that could not be scored."""


def collect(
    sampler: Sampler,
    tasks: Sequence[Task],
    loaded: Loaded,
    rewards: Rewards,
    *,
    k: int,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Answers:
    """Answer every task greedily and k times at the temperature, and score it all."""
    if k < 1 or temperature <= 0:
        raise ConfigError(f"k = {k}, temperature = {temperature}: pass@k needs one sampled answer or more, not greedy")
    greedy = answer(sampler, tasks, loaded, max_tokens=max_tokens)
    draws = rng.fold(seed, "measure")
    sampled = answer(sampler, tasks, loaded, max_tokens=max_tokens, n=k, temperature=temperature, seed=draws)
    return Answers(score(greedy, rewards), score(sampled, rewards))


def count(answers: Answers) -> Measured:
    """The figures of scored answers. Raises DataError where no task could be scored."""
    greedy = [v for g in answers.greedy for v in _values(g)]
    members = [m for g in answers.sampled for m in g.members]
    k = len(answers.sampled[0].members)
    rights = [sum(v >= 1.0 for v in values) for g in answers.sampled if len(values := _values(g)) == k]
    unscored = sum(m.score.value is None for g in (*answers.greedy, *answers.sampled) for m in g.members)
    if not greedy or not rights:
        why = next((m.score.why for m in members if m.score.value is None), "")
        raise DataError(
            f"no task has answers that could all be scored ({unscored} answers without a score; the first: {why}). "
            "Give tasks with a gold answer, or another reward."
        )
    return Measured(
        tasks=len(answers.greedy),
        k=k,
        greedy=wilson(sum(v >= 1.0 for v in greedy), len(greedy)),
        pass_1=bootstrap(unbiased_pass_at_k(torch.tensor(rights), k, 1).tolist()),
        pass_k=bootstrap(unbiased_pass_at_k(torch.tensor(rights), k, k).tolist()),
        reward=fmean(greedy),
        stop_share=fmean(m.stop is Stop.END for m in members),
        length=fmean(m.length for m in members),
        unscored=unscored,
    )


def first_line(answers: Answers, rewards: Rewards) -> Answers:
    """The same answers read up to their first newline, scored again: what a base model says before it runs on."""
    return Answers(*(score([_cut(g) for g in side], rewards) for side in (answers.greedy, answers.sampled)))


def _cut(group: Group) -> Group:
    return replace(group, members=tuple(_cut_member(m) for m in group.members))


def _cut_member(m: Trajectory) -> Trajectory:
    """A line that was completed counts as an answer that stopped."""
    line, newline, _ = m.completion.partition("\n")
    if not newline:
        return m
    return replace(m, messages=(*m.messages[:-1], Message("assistant", line)), stop=Stop.END)


def _values(group: Group) -> list[float]:
    return [m.score.value for m in group.members if m.score.value is not None]
