"""What a baseline does to the gradient of a language model: its variance falls, its mean stays.

Nothing is trained. The base answers questions of fact, nine in ten of them rightly, again and again, and REINFORCE's
gradient of each batch is taken under every baseline. The mean squared length of the gradients' difference, estimated
from two halves of the batches that share no sample, is 0 in expectation if the means agree.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain import rng
from posttrain.algorithms import reinforce
from posttrain.batch import TokenBatch, collate_groups, weigh
from posttrain.data.rows import pick, tasks
from posttrain.envs.rollout import rollout
from posttrain.lab.study import Cells, Figure, Study, interval
from posttrain.lab.word_runs import column, common
from posttrain.models.load import Loaded, load
from posttrain.rewards.base import score
from posttrain.rewards.resolve import rewards_for
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import forward

BASELINES = reinforce.BASELINES


def measure(settings: Mapping[str, Any], seed: int, scratch: Path) -> Mapping[str, Any]:
    """Of each baseline: the gradient's variance (the trace of its covariance) and its distance from no baseline."""
    torch.set_num_threads(1)
    same = common(seed, task="facts")
    cfg = reinforce.Config(**same, prompts=settings["prompts"], group_size=4)
    loaded = load(cfg.model, template=cfg.template)
    rows, n = tasks(cfg.data, loaded).train, settings["batches"]
    sampler = TorchSampler(loaded.model)
    sums = {b: [0.0, 0.0] for b in BASELINES}  # of gradients, over even and over odd batches
    squares, running = dict.fromkeys(BASELINES, 0.0), 0.0
    for k in range(n + 1):  # the first batch only says what "running" subtracts
        draw = rng.fold(seed, "baseline", k)
        groups = rollout(sampler, pick(rows, k, cfg.prompts, seed), n=4, seed=draw, params=cfg.sampling,
                         template=loaded.template, tokenizer=loaded.tokenizer)  # fmt: skip
        batch, reward = collate_groups(score(groups, rewards_for("auto", rows)), loaded.tokenizer.pad_id)
        for baseline in BASELINES if k else ():
            found = gradient(loaded, batch, reward, replace(cfg, baseline=baseline), running / k)
            sums[baseline][k % 2] = sums[baseline][k % 2] + found
            squares[baseline] += float(found.square().sum())
        running += float(reward.mean())
    half = n // 2
    plain = sums["none"]
    figures = {"square": float((plain[0] / half) @ (plain[1] / half))}
    for b in BASELINES:
        mean = (sums[b][0] + sums[b][1]) / n
        figures[f"variance, {b}"] = (squares[b] - n * float(mean.square().sum())) / (n - 1)
        apart = [(x - y) / half for x, y in zip(sums[b], plain, strict=True)]
        figures[f"distance, {b}"] = float(apart[0] @ apart[1])
    return figures


def gradient(loaded: Loaded, batch: TokenBatch, reward: Tensor, cfg: reinforce.Config, running: float) -> Tensor:
    """The gradient of REINFORCE's loss on one batch, as one vector."""
    place = batch.mask & (batch.mask.flip(1).cumsum(1).flip(1) == 1)
    rewards = place * reward[batch.trajectory][:, None]
    batch = weigh(batch.with_(advantage=reinforce.credit(rewards, batch, cfg, running)), cfg.average)
    logp = forward(loaded.model, batch, ("logp",)).logp
    loss = -(batch.weights["token"] * batch.advantage * logp).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(loaded.model.parameters()))])


def read(cells: Cells) -> list[Figure]:
    """Less variance under either baseline; a distance between the means that is not told from 0."""
    seeds, figures = cells["facts"], []
    plain, square = column(seeds, "variance, none"), column(seeds, "square")
    for b in BASELINES[1:]:
        share = [x / y for x, y in zip(column(seeds, f"variance, {b}"), plain, strict=True)]
        mean, low, high = interval(share)
        text = f"{b}: the gradient's variance is {mean:.3f} [{low:.3f}, {high:.3f}] of that without a baseline"
        figures.append(
            Figure(what=f"variance, {b}", before=1.0, after=mean, low=low - 1, high=high - 1, seen=high < 1, text=text)
        )
        apart = [x / y for x, y in zip(column(seeds, f"distance, {b}"), plain, strict=True)]
        mean, low, high = interval(apart)
        size = interval([x / y for x, y in zip(square, plain, strict=True)])[0]
        text = (
            f"{b}: squared distance of the mean gradients {mean:+.5f} [{low:+.5f}, {high:+.5f}], squared length of the "
            f"mean {size:+.5f}, in units of the variance without a baseline"
        )
        figures.append(
            Figure(what=f"mean, {b}", before=0.0, after=mean, low=low, high=high, seen=low <= 0 <= high, text=text)
        )
    return figures


STUDY = Study(
    name="baseline",
    claim="a baseline cuts the variance of the policy gradient and leaves its mean where it is",
    source="Williams 1992; Greensmith et al. 2004",
    arms={"facts": {"prompts": 16, "batches": 24}},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    read=read,
)
