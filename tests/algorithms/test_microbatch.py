"""How a step is cut into micro-batches changes no gradient, for every loss of every loop; nor does packing.

The losses are those that the loops hand to the learner: the learner's `step` is watched, so each case is the real
algorithm's batch, weights and closure. Gradients are compared in norm, from equal weights, before any optimizer step.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from algorithms import (
    test_group,
    test_ppo,
    test_preference,
    test_reinforce,
    test_reward_model,
    test_sft,
    test_vapo,
    toy,
)
from posttrain.algorithms import group, ppo, preference, reinforce, reward_model, sft, vapo
from posttrain.models.decoder import Decoder
from posttrain.objectives.advantages import NEEDS
from posttrain.objectives.preference import PreferenceLoss
from posttrain.objectives.preference.menu import MENU
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.regularizers import Entropy
from posttrain.objectives.tokens import token_logprobs
from posttrain.train.learner import Learner, Optim, Outputs, Part

Caught = list[tuple[Learner, Part]]


class Enough(Exception):
    """Raised by the watcher when it has seen what it wants."""


@pytest.fixture
def catch(monkeypatch, tmp_path) -> Callable[..., Caught]:
    """Run a loop until it has made so many optimizer steps; the learner and part of each."""

    def run(module, cfg, steps: int = 1) -> Caught:
        caught: Caught = []
        real = Learner.step

        def step(self, *parts):
            if len(caught) == steps:
                raise Enough
            caught.append((self, *parts))
            return real(self, *parts)

        monkeypatch.setattr(Learner, "step", step)
        with contextlib.suppress(Enough):
            toy.run(module, cfg, tmp_path / "run")
        monkeypatch.undo()
        return caught

    return run


def cast(part: Part, dtype: torch.dtype) -> Part:
    """The part with its floating-point tensors in `dtype`."""
    names = [n for n, x in vars(part.batch).items() if isinstance(x, Tensor) and x.is_floating_point()]
    weights = {name: w.to(dtype) for name, w in part.batch.weights.items()}
    return part._replace(
        batch=part.batch.with_(**{n: getattr(part.batch, n).to(dtype) for n in names}, weights=weights)
    )


def gradient(learner: Learner, part: Part, micro: int | None, dtype: torch.dtype) -> Tensor:
    """The gradient that `Learner.step` makes, at weights beside the reference, where every term has a slope."""
    was = next(learner.model.parameters()).dtype
    model = learner.model.to(dtype)
    g = torch.Generator().manual_seed(1)
    kept = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype))
    Learner(model, Optim(max_grad_norm=0, micro_tokens=micro), total=1).step(cast(part, dtype))
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    with torch.no_grad():
        for p, old in zip(model.parameters(), kept, strict=True):
            p.copy_(old)
    learner.model.to(was)
    return found


def check(learner: Learner, part: Part) -> None:
    for dtype, tolerance, cuts in ((torch.float64, 1e-10, (1, 13, 40)), (torch.float32, 1e-5, (13,))):
        whole = gradient(learner, part, None, dtype)
        assert whole.norm() > 1e-6
        for micro in cuts:
            split = gradient(learner, part, micro, dtype)
            assert (split - whole).norm() <= tolerance * whole.norm(), (dtype, micro)
    packed = gradient(learner, part, None, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.train.learner.forward", padded)
        plain = gradient(learner, part, None, torch.float64)
    assert (packed - plain).norm() <= 1e-10 * packed.norm()


def padded(model, batch, needs) -> Outputs:
    """What `learner.forward` returns, by padded rows and whole logits."""
    decoder = model if isinstance(model, Decoder) else model.decoder
    hidden = decoder(batch.tokens, batch.attend)
    if "values" in needs:
        return Outputs(values=model.score(hidden).squeeze(-1) * batch.attend)
    logits = model.logits(hidden)
    before = (logits / batch.temperature[:, None, None])[:, :-1].log_softmax(-1)
    spread = torch.nn.functional.pad(-(before.exp() * before).sum(-1), (1, 0))
    squares = torch.nn.functional.pad(before.exp().square().sum(-1), (1, 0))
    logp = token_logprobs(logits, batch.tokens, temperature=batch.temperature)
    return Outputs(
        logp=logp * batch.mask,
        entropy=spread * batch.mask if "entropy" in needs else None,
        sum_sq=squares * batch.mask if "sum_sq" in needs else None,
    )


@pytest.mark.parametrize("kind", ["token", "sequence", "sum"])
def test_the_loss_of_sft(catch, tmp_path, kind):
    cfg = test_sft.config(tmp_path, average=replace(sft.Config.average, kind=kind))
    cfg = replace(cfg, data=replace(cfg.data, path=uneven(tmp_path)))
    check(*catch(sft, cfg)[0])


def uneven(folder) -> str:
    """Demonstrations of one to nine words."""
    items = [{"prompt": toy.WORDS[i], "completion": " ".join(toy.WORDS[: 1 + i])} for i in range(9)]
    return toy.rows(folder / "uneven.jsonl", items)


def uneven_pairs(folder, gaps: bool = False) -> str:
    """Pairs whose answers differ in length, with a margin here and there, or with gaps everywhere."""
    items = [
        {"prompt": "a", "chosen": " ".join(toy.WORDS[: 1 + i]), "rejected": " ".join(toy.WORDS[i : i + 1 + i % 4])}
        | ({"margin": 0.3 * i} if i % 2 or gaps else {"margin": None})
        for i in range(1, 9)
    ]
    return toy.rows(folder / "uneven_pairs.jsonl", items)


@pytest.mark.parametrize("centering", [0.0, 0.5])
def test_the_loss_of_reward_model(catch, tmp_path, centering):
    cfg = test_reward_model.config(tmp_path, centering=centering)
    cfg = replace(cfg, data=replace(cfg.data, path=uneven_pairs(tmp_path), eval_rows=0), batch_size=8)
    learner, part = catch(reward_model, cfg)[0]
    assert part.batch.margin.unique().numel() > 3
    check(learner, part)


@pytest.mark.parametrize("name", MENU)
def test_the_loss_of_preference(catch, tmp_path, name):
    smoothing = 0.1 if "label_smoothing" in MENU[name].reads else None
    loss = PreferenceLoss(name=name, label_smoothing=smoothing)
    cfg = test_preference.config(tmp_path, loss=loss, batch_size=8)
    cfg = replace(cfg, data=replace(cfg.data, path=uneven_pairs(tmp_path, loss.needs_score_gap), eval_rows=0))
    check(*catch(preference, cfg)[0])


def one_of_each() -> list[str]:
    """A preset for every combination of kinds that the loop can run; values within a kind are the formulas' matter."""
    found = {}
    for name, o in PRESETS.items():
        runs = not o.needs_critic and not NEEDS.get(o.advantage, frozenset()) - {"baseline", "k"}
        kinds = (o.ratio, o.old, o.clip.kind, o.gate.kind, o.focus.kind, o.kl.where == "loss", o.mismatch.kind,
                 o.proximal.estimator, o.proximal.level)  # fmt: skip
        if runs and kinds not in found:
            found[kinds] = name
    return list(found.values())


@pytest.mark.parametrize("preset", one_of_each())
def test_the_loss_of_group(catch, tmp_path, preset):
    """Every kind of objective with an entropy bonus; and the second of two minibatches, where the ratio has left 1."""
    fresh = not PRESETS[preset].corrects_stale
    cfg = test_group.config(tmp_path, preset=preset, steps=3, minibatches=1 if fresh else 2, optim=Optim(lr=1e-3))
    cfg = replace(cfg, objective=replace(cfg.objective, entropy=Entropy(weight=0.01)))
    learner, part = catch(group, cfg, steps=1 if fresh else 2)[-1]
    assert part.batch.lengths.unique().numel() > 1
    check(learner, part)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_leash_in_the_loss(catch, tmp_path, estimator):
    cfg = test_group.config(tmp_path, preset="grpo")
    kl = replace(cfg.objective.kl, estimator=estimator, beta=0.5)
    learner, part = catch(group, replace(cfg, objective=replace(cfg.objective, kl=kl)))[0]
    assert part.batch.ref_logp is not None
    check(learner, part)


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_loss_of_ppo(catch, tmp_path, clip):
    """The critic's loss and the policy's, in the second minibatch."""
    cfg = test_ppo.config(tmp_path, value_clip=clip, prompts=16)
    critic, policy = catch(ppo, cfg, steps=4)[2:]
    assert critic[1].needs == ("values",) and "logp" in policy[1].needs
    check(*critic)
    check(*policy)


def test_the_loss_of_reinforce(catch, tmp_path):
    cfg = test_reinforce.config(tmp_path, entropy=Entropy(weight=0.01), steps=1)
    check(*catch(reinforce, cfg)[0])


def test_the_two_losses_of_vapo(catch, tmp_path):
    """Right answers are averaged over their own tokens, wherever these end up."""
    cfg = test_vapo.config(tmp_path, pretrain_steps=0, right=0.3, positive=1.0, steps=1)
    learner, part = catch(vapo, cfg, steps=2)[1]
    assert 0 < part.batch.label.sum() < len(part.batch)
    check(learner, part)
