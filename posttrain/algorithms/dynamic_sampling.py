"""Which prompts a step samples: all that it is given, or further ones until enough of them can teach.

A group whose answers are all worth the same has no advantage, so that it only makes the batch smaller; as a run goes
on, more and more groups are so. Section 24 of the book tells the story.
"""

from collections.abc import Callable, Sequence
from typing import Any

from posttrain.algorithms.policy_step import usable
from posttrain.data.sources import take
from posttrain.records import Group, Task
from posttrain.sample.base import SamplingParams
from posttrain.train.metrics import Metrics
from posttrain.train.run import Run


def draw(
    cfg: Any,
    run: Run,
    step: int,
    prompts: Sequence[Task],
    state: dict,
    params: SamplingParams,
    answered: Callable[[Sequence[Task], int, SamplingParams, int], list[Group]],
) -> tuple[list[Group], list[Group]]:
    """All scored groups of a step, and those it learns from; state["cursor"] moves on by the prompts it took.

    Dynamic sampling: Yu et al. 2025 (arXiv 2503.14476), eq. 11. With objective.keep = "mixed", prompts whose answers
    are all worth the same are replaced by further ones until the batch is full, or `cfg.draws` rollouts were made.

    answered: scored groups for (tasks, samples per task, how, seed).
    """
    groups, kept = [], []
    for again in range(cfg.draws if cfg.objective.keep == "mixed" else 1):
        questions = run.took(step, take(prompts, state["cursor"], cfg.prompts - len(kept), cfg.run.seed))
        state["cursor"] += len(questions)
        seed = run.seed(step, "rollout", again) if again else run.seed(step, "rollout")
        found = answered(questions, cfg.group_size, params, seed)
        groups, kept = groups + found, kept + usable(found, cfg.objective)
        if len(kept) == cfg.prompts:
            break
    return groups, kept


def drawn_metrics(cfg: Any, groups: Sequence[Group], kept: Sequence[Group], lag: int) -> Metrics:
    """What dynamic sampling cost, and by how many optimizer steps the samples are old, where either is asked for."""
    found: Metrics = {"groups_kept_share": (len(kept), len(groups)), "prompts_drawn": (len(groups), 1)}
    return (found if cfg.objective.keep == "mixed" else {}) | ({"lag": (lag, 1)} if cfg.apart else {})
