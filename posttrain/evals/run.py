"""Evaluation by generation: answers to held-out tasks, graded by the same rewards that training uses."""

from collections.abc import Mapping, Sequence

from posttrain.envs.rollout import rollout
from posttrain.models.load import Loaded
from posttrain.records import Group, Stop, Task
from posttrain.rewards.base import score
from posttrain.sample.base import Sampler, SamplingParams
from posttrain.train.metrics import Metrics


def answer(
    sampler: Sampler, tasks: Sequence[Task], loaded: Loaded, *, max_tokens: int, n: int = 1, temperature: float = 0.0,
    seed: int = 0,
) -> list[Group]:  # fmt: skip
    """n answers to each task; greedy unless a temperature is given. Not scored."""
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, stop_ids=loaded.stop_ids)
    return rollout(sampler, tasks, n=n, params=params, seed=seed, template=loaded.template, tokenizer=loaded.tokenizer)


def evaluate(sampler: Sampler, tasks: Sequence[Task], loaded: Loaded, rewards: Mapping, max_tokens: int) -> Metrics:
    """Mean reward of greedy answers, share of full marks, share that stop, and their length: metrics named eval_*."""
    groups = score(answer(sampler, tasks, loaded, max_tokens=max_tokens), rewards)
    members = [g.members[0] for g in groups]
    values = [m.score.value for m in members if m.score.value is not None]
    return {
        "eval_reward": (sum(values), len(values)),
        "eval_accuracy": (sum(v >= 1.0 for v in values), len(values)),
        "eval_stop_share": (sum(m.stop == Stop.END for m in members), len(members)),
        "eval_length": (sum(m.length for m in members), len(members)),
    }
