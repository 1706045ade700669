"""Each script does what the kernel does: the same losses and gradients, with the kernel's decoder in both.

The scripts make their batches, advantages and averages in padded rows and plain autograd; the kernel makes its own, in
packed rows, micro-batches and the chunked head. All rows are sampled by the scripts from the decoder.
"""

import random
from dataclasses import replace

import pytest
import torch
from scripts import load
from twin import Twin, decoder, grouped, segments

from posttrain.algorithms import policy_step, ppo, preference, sft
from posttrain.algorithms.onpolicy import charged
from posttrain.algorithms.reference import Comparison, Reference
from posttrain.batch import collate, weigh
from posttrain.data.rows import PairRow
from posttrain.models.heads import ScalarModel
from posttrain.models.load import frozen_copy
from posttrain.models.lora import Lora
from posttrain.objectives import PRESETS, Average, Clip, Objective, PreferenceLoss, policy_loss, value_loss
from posttrain.objectives.tokens import values_before
from posttrain.train.learner import Part, Term

REINFORCE = Objective(advantage="center", ratio="none", clip=Clip(kind="log"), average=Average("token"))


@pytest.fixture(params=[(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"])
def tolerance(request):
    """Runs a test in both types; what it may differ by, relative."""
    dtype, tolerance = request.param
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield tolerance
    torch.set_default_dtype(before)


def near(ours, theirs, mask, tolerance) -> bool:
    """Whether [N, T] of a script equals [N, T'] of the kernel under the mask, which both cut to what is real."""
    width = theirs.shape[1]
    assert not mask[:, width:].any()
    return bool(((ours[:, :width] - theirs)[mask[:, :width]].abs() <= tolerance).all())


def policy(objective: Objective):
    """The loss that the loops of the group family and of PPO hand to the learner."""

    def loss(out, b):
        old = out.logp.detach() if b.old_logp is None else b.old_logp
        value, metrics = policy_loss(out.logp, old, b.advantage, b.mask, objective, ref_logp=b.ref_logp)
        return [Term("policy", value, b.weights["token"])], metrics

    return loss


def prompts(script, count: int) -> list[list[int]]:
    """Prompts of two to five letters."""
    return [script.encode("".join(random.sample("abcdefgh", random.randint(2, 5))) + "=") for _ in range(count)]


@pytest.mark.parametrize("micro", [1, 3, 100])
def test_sft(tolerance, micro):
    script = load("sft")
    twin = Twin(decoder(len(script.VOCAB)), micro=40)
    questions, _ = script.make_questions()
    for _ in range(5):
        ids, mask = script.collate([script.encode_chat(random.sample(questions, 1 + i % 2)) for i in range(8)])
        batch = weigh(collate(segments(ids, mask), pad_id=script.PAD), Average("token"))
        assert torch.equal(batch.tokens, ids) and torch.equal(batch.mask, mask)
        metrics = twin.step(Part(batch, sft.loss))
        found = script.update(twin.logits, twin.optimizer, ids, mask, micro)
        assert found["tokens"] == batch.mask.sum()
        twin.check(metrics, found["loss"], found["grad_norm"], tolerance)
    twin.check_drift(tolerance)


def test_dpo(tolerance):
    script, loss = load("dpo"), PreferenceLoss(name="dpo", beta=0.5)
    twin = Twin(decoder(len(script.VOCAB)))
    asked = ["".join(random.sample("abcdefgh", random.randint(2, 5))) + "=" for _ in range(60)]
    ids, mask = script.make_pairs(twin.logits, asked)
    rows = [PairRow(i, tuple(segments(*pair))) for i, pair in enumerate(zip(ids, mask, strict=True))]
    compare = Comparison(Reference(), twin.learner, None, rows, Lora())
    with torch.no_grad():
        ref_logp = script.answer_logprobs(twin.logits, ids.flatten(0, 1), mask.flatten(0, 1)).view(-1, 2)
    for step in range(5):
        picked = torch.randperm(len(rows))[:8]
        batch = preference.make_batch([rows[i] for i in picked], compare, loss)
        metrics = twin.step(Part(batch, lambda out, b: preference.loss_terms(out, b, loss), loss.needs, "group"))
        found = script.update(twin.logits, twin.optimizer, ids[picked], mask[picked], ref_logp[picked])
        twin.check(metrics, found["loss"], found["grad_norm"], tolerance)
        total, count = metrics["accuracy"]
        assert step == 0 or found["accuracy"] == pytest.approx(float(total / count), abs=1e-6)
    twin.check_drift(tolerance)


def test_grpo(tolerance):
    script, objective = load("grpo"), PRESETS["grpo"]
    twin = Twin(decoder(len(script.VOCAB)))
    reference, clipped = frozen_copy(twin.learner.model), 0.0
    for step in range(4):
        twin.sync()
        asked = [p for p in prompts(script, 6) for _ in range(4)]
        ids, mask, sampled_logp = script.sample(twin.logits, asked, script.MAX_NEW)
        reward = torch.randint(2, (6, 4)).to(torch.get_default_dtype())
        reward[0] = 1.0  # a group that says nothing
        advantage = script.group_advantage(reward).flatten()
        with torch.no_grad():
            old_logp = script.token_logprobs(twin.logits, ids)
            ref_logp = script.token_logprobs(lambda x: reference.logits(reference(x)), ids)
        batch, rewards = grouped(segments(ids, mask, sampled_logp), reward)
        batch = policy_step.with_logps(batch, twin.learner, reference, old=True)
        batch, _ = policy_step.with_advantages(batch, rewards, objective, {"beta": objective.kl.beta})
        assert near(sampled_logp, batch.old_logp, mask, 100 * tolerance)  # of the script's sampler, and of the kernel
        assert near(advantage[:, None].expand(mask.shape), batch.advantage, mask, tolerance)
        for part in batch.minibatches(2, seed=step):
            rows = part.trajectory
            metrics = twin.step(Part(weigh(part, objective.average), policy(objective), ("logp",)))
            found = script.update(
                twin.logits, twin.optimizer, ids[rows], mask[rows], old_logp[rows], ref_logp[rows], advantage[rows]
            )
            twin.check(metrics, found["loss"], found["grad_norm"], tolerance)
            for name, ours in ("clip_share", "clipped"), ("kl_ref_k3", "kl"):
                total, count = metrics[name]
                assert found[ours] == pytest.approx(float(total) / float(count), rel=1e-4, abs=1e-6)
            clipped += found["clipped"]
    assert clipped > 0  # the steps were long enough to meet the clip
    twin.check_drift(tolerance)


def test_ppo(tolerance):
    script, cfg = load("ppo"), ppo.Config()
    assert (cfg.objective.kl.beta, cfg.gamma, cfg.lam, cfg.value_clip) == (0.05, 1.0, 0.95, 0.2)
    actor = Twin(decoder(len(script.VOCAB)))
    head = ScalarModel(decoder(len(script.VOCAB), seed=1))
    torch.nn.init.normal_(head.score.weight)
    critic, reference, cut = Twin(head.to(torch.get_default_dtype())), decoder(len(script.VOCAB), seed=2), 0.0
    for step in range(2):
        actor.sync()
        critic.sync()
        ids, mask, sampled_logp = script.sample(actor.logits, prompts(script, 12), script.MAX_NEW)
        scores = torch.rand(12)
        with torch.no_grad():
            old_logp = script.token_logprobs(actor.logits, ids)
            ref_logp = script.token_logprobs(lambda x: reference.logits(reference(x)), ids)
            old_value = script.token_values(critic.values, ids) * mask
        rewards = script.token_rewards(scores, (old_logp - ref_logp) * mask, mask)
        advantage, target = script.gae(rewards, old_value, mask)
        advantage = script.whiten(advantage, mask)
        batch, outcome = grouped(segments(ids, mask, sampled_logp), scores[:, None])
        batch = policy_step.with_logps(batch, actor.learner, reference, old=True)
        batch = batch.with_(old_value=values_before(critic.learner.outputs(batch, ("values",)).values))
        rewards, _, _ = charged(batch, outcome, batch.old_logp, cfg.objective.kl, {"beta": cfg.objective.kl.beta})
        batch = ppo.with_advantages(batch, rewards, cfg)
        assert near(advantage, batch.advantage, mask, 10 * tolerance)
        assert near(target, batch.value_target, mask, 10 * tolerance)

        def loss_of_critic(out, b):
            value, found = value_loss(values_before(out.values), b.old_value, b.value_target, b.mask, clip=0.2)
            return [Term("value", value, b.weights["token"])], found

        for epoch in range(2):
            for part in batch.minibatches(2, seed=10 * step + epoch):
                rows, part = part.trajectory, weigh(part, cfg.objective.average)
                fit = critic.step(Part(part, loss_of_critic, ("values",)))
                metrics = actor.step(Part(part, policy(cfg.objective), ("logp",)))
                found = script.update(
                    actor.logits, critic.values, actor.optimizer, critic.optimizer,
                    *(x[rows] for x in (ids, mask, old_logp, old_value, advantage, target)),
                )  # fmt: skip
                actor.check(metrics, found["loss"], found["grad_norm"], tolerance)
                critic.check(fit, found["value_loss"], found["value_grad_norm"], tolerance)
                cut += float(metrics["clip_share"][0] * fit["value_clip_share"][0])
    assert cut > 0  # both clips were met
    actor.check_drift(tolerance)
    critic.check_drift(tolerance)


@pytest.mark.parametrize("objective", [REINFORCE, replace(REINFORCE, ratio="token", clip=Clip(kind="none"))])
def test_agent(tolerance, objective):
    """As REINFORCE is written; and with an importance ratio, which is 1, in gradients alone."""
    script = load("agent")
    twin = Twin(decoder(len(script.VOCAB)))
    for _ in range(5):
        twin.sync()
        episodes = [script.Episode(*task) for task in [script.make_task() for _ in range(3)] for _ in range(4)]
        script.rollout(twin.logits, episodes)
        ids, mask, sampled_logp = script.collate(episodes)
        assert max(e.turns for e in episodes) > 1 and mask.any(1).all()
        reward = torch.rand(3, 4)
        advantage = script.group_advantage(reward).flatten()
        batch, rewards = grouped(segments(ids, mask, sampled_logp), reward)
        batch, _ = policy_step.with_advantages(batch, rewards, objective, {})
        assert near(sampled_logp, twin.learner.outputs(batch).logp, mask, 100 * tolerance)
        assert near(advantage[:, None].expand(mask.shape), batch.advantage, mask, tolerance)
        metrics = twin.step(Part(weigh(batch, objective.average), policy(objective), ("logp",)))
        found = script.update(twin.logits, twin.optimizer, ids, mask, sampled_logp, advantage)
        loss = found["loss"] if objective is REINFORCE else metrics["loss"][0]
        twin.check(metrics, loss, found["grad_norm"], tolerance)
    twin.check_drift(tolerance)
