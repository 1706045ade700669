"""The parts of the scripts against numbers and cases that can be followed by hand."""

import math
import statistics

import pytest
import torch
from scripts import NAMES, load


def says(script, text: str):
    """A model that continues any prompt along one text: after character i of it comes character i + 1, for sure."""
    follow = {script.VOCAB.index(a): script.VOCAB.index(b) for a, b in zip(text, text[1:], strict=False)}

    def model(ids):
        logits = torch.full((*ids.shape, len(script.VOCAB)), -1e4)
        nexts = torch.tensor([[follow.get(int(i), 0) for i in row] for row in ids])
        return logits.scatter(2, nexts[..., None], 0.0)

    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_one_shift(name):
    """Logits at t-1 predict token t; a uniform model says -log V everywhere else than at token 0."""
    script = load(name)
    ids = torch.tensor([[2, 0, 1]])
    logits = torch.tensor([[[0.0, 1.0, 2.0], [5.0, 3.0, 0.0], [9.0, 9.0, 9.0]]])
    logp = script.token_logprobs(lambda _: logits, ids)
    first = 0 - math.log(1 + math.e + math.e**2)  # token 0 after the first position
    second = 3 - math.log(math.e**5 + math.e**3 + 1)  # token 1 after the second
    torch.testing.assert_close(logp, torch.tensor([[0.0, first, second]]))
    uniform = script.token_logprobs(lambda i: torch.zeros(*i.shape, 7), ids)
    torch.testing.assert_close(uniform, torch.tensor([[0.0, -math.log(7), -math.log(7)]]))


@pytest.mark.parametrize("name", ["dpo", "ppo", "grpo"])
def test_sampling_of_ragged_rows(name):
    """Each row grows at its own end, stops after END, which is masked in, or after max_new tokens."""
    script = load(name)
    ids, mask, logp = script.sample(says(script, "dba=ceg."), [script.encode(p) for p in ("d", "ba=", "e")], 4)
    assert ["".join(script.VOCAB[i] for i in row).rstrip() for row in ids] == ["dba=c", "ba=ceg.", "eg."]
    assert script.decode(ids, mask) == ["ba=c", "ceg.", "g."]
    assert not mask[:, 0].any() and (logp == 0).all()  # it was sure of each


@pytest.mark.parametrize("name", NAMES)
def test_sampling_says_what_it_drew_from(name):
    """sampled_logp is the log-probability under the model, row by row, and 0 where the policy did not choose."""
    script = load(name)
    model = script.GPT(len(script.VOCAB), len(script.VOCAB))
    ids, mask, sampled_logp = script.sample(model, [[2], [3, 4, 5], [6, 7]], 5)
    torch.testing.assert_close(sampled_logp, script.token_logprobs(model, ids) * mask, atol=1e-5, rtol=0)
    assert ids[1, :3].tolist() == [3, 4, 5] and not mask[1, :3].any() and mask[1, 3]


def test_frequencies_of_samples():
    """Tokens are drawn from the softmax at temperature 1."""
    script = load("grpo")
    logits = torch.full((len(script.VOCAB),), -1e4)
    logits[3:6] = torch.tensor([0.5, 0.3, 0.2]).log()
    ids, _, _ = script.sample(lambda i: logits.expand(*i.shape, -1), [[2]] * 20_000, 1)
    share = torch.bincount(ids[:, 1], minlength=6)[3:6] / 20_000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)  # four deviations


def steps(name: str, logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """One update of the script on four rows, of the logits themselves."""
    script, optimizer = load(name), torch.optim.SGD([logits], lr=0.0)
    zeros, advantage = torch.zeros(ids.shape), torch.tensor([1.0, -1.0, 0.5, 2.0])
    with torch.no_grad():
        logp = script.token_logprobs(lambda _: logits, ids)
    match name:
        case "sft":
            script.update(lambda x: logits, optimizer, ids, mask, 4)
        case "dpo":
            script.update(lambda x: logits, optimizer, ids.view(2, 2, -1), mask.view(2, 2, -1), torch.zeros(2, 2))
        case "ppo":
            values = torch.zeros(*ids.shape, 1, requires_grad=True)
            critic = torch.optim.SGD([values], lr=0.0)
            spread = advantage[:, None] * mask
            script.update(lambda x: logits, lambda x: values, optimizer, critic, ids, mask, logp, zeros, spread, spread)
            assert torch.equal(values.grad[..., 0] != 0, predicts(mask))
        case "grpo":
            script.update(lambda x: logits, optimizer, ids, mask, logp, logp - 0.1, advantage)
        case "agent":
            script.update(lambda x: logits, optimizer, ids, mask, logp, advantage)


def predicts(mask: torch.Tensor) -> torch.Tensor:
    """Positions whose output predicts a token under the mask."""
    return torch.nn.functional.pad(mask[:, 1:], (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_only_what_the_policy_wrote_is_learned(name):
    """The gradient reaches the logits that predict tokens under the mask, and no others."""
    script = load(name)
    ids = torch.randint(2, 9, (4, 9))
    mask = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 0]] * 2 + [[0, 1, 1, 0, 0, 0, 0, 0, 0]] * 2).bool()
    logits = torch.randn(4, 9, len(script.VOCAB), requires_grad=True)
    steps(name, logits, ids, mask)
    assert torch.equal(logits.grad.abs().sum(-1) > 0, predicts(mask))


def test_sft_micro_batches_change_nothing():
    """A token counts as much in a short conversation as in a long one, however the step is cut."""
    script = load("sft")
    ids, mask = script.collate(
        [script.encode_chat(c) for c in (["copy a b"], ["sort c b a", "copy a b c d e"], ["copy h g"])]
    )
    found = []
    for micro in (1, 2, 3):
        logits = torch.zeros(*ids.shape, len(script.VOCAB))
        logits[0, :, 0] = 5.0  # one row is bad at it
        logits.requires_grad_()
        rows = iter(torch.arange(len(ids)).split(micro))
        watch = script.update(
            lambda _, r=rows, z=logits: z[next(r)], torch.optim.SGD([logits], lr=0.0), ids, mask, micro
        )
        found.append((watch["loss"], logits.grad.clone()))
    bad, good = math.log(math.exp(5) + 14), math.log(15)
    assert found[0][0] == pytest.approx((3 * bad + (4 + 6 + 3) * good) / 16)
    for loss, grad in found[1:]:
        assert loss == pytest.approx(found[0][0])
        torch.testing.assert_close(grad, found[0][1])


def test_sft_mask_is_what_the_assistant_said():
    """Under the mask stand exactly the answers, each with the token that ends it."""
    script = load("sft")
    ids, mask = script.encode_chat(["sort c a b", "reverse a b"])
    assert script.decode(ids) == (
        "<user> sort c a b <end> <assistant> a b c <end> <user> reverse a b <end> <assistant> b a <end>"
    )
    assert script.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "a b c <end> b a <end>"
    seen, unseen = script.make_questions()
    assert (len(set(seen)), len(set(unseen)), set(seen) & set(unseen)) == (3000, 300, set())


def test_dpo_at_the_reference():
    """log 2, slope -β/2 in the chosen answer's log-probability and β/2 in the rejected one's."""
    script = load("dpo")
    logp = torch.tensor([[-3.0, -7.0]], requires_grad=True)
    loss, watch = script.dpo_loss(logp, logp.detach().clone(), beta=0.3)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and watch["accuracy"] == 0
    torch.testing.assert_close(logp.grad, torch.tensor([[-0.15, 0.15]]))


def test_dpo_pairs_follow_the_rater():
    script = load("dpo")
    assert [script.rate(a) for a in ("abc.", "cba.", "acb.", "a.", "aa.")] == [2, -2, 0, 0, -1]
    model = script.GPT(len(script.VOCAB), len(script.VOCAB))
    ids, mask = script.make_pairs(model, ["dbca=", "ab="] * 50)
    assert 0 < len(ids) < 100  # ties were dropped
    for pair, chosen in zip(ids, mask, strict=True):
        assert torch.equal(pair[0][~chosen[0]][:3], pair[1][~chosen[1]][:3])  # the same prompt
        better, worse = (script.rate(a) for a in script.decode(pair, chosen))
        assert better > worse


def test_grpo_worked_group():
    """Two of eight right: 1.620 and -0.540. All right, or none: nothing."""
    script = load("grpo")
    reward = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0], [1.0] * 8, [0.0] * 8])
    advantage = script.group_advantage(reward)
    std = statistics.stdev([1, 0, 0, 1, 0, 0, 0, 0]) + 1e-4
    torch.testing.assert_close(advantage[0, :2], torch.tensor([0.75, -0.25]) / std)
    assert (advantage[1:] == 0).all()


def test_grpo_clip():
    """ρ = 1.5: an advantage of 1 counts as 1.2 and no more; an advantage of -1 counts in full. Averaged per answer."""
    script = load("grpo")
    logp = torch.log(torch.tensor([[1.0, 1.5, 1.0], [1.0, 1.5, 1.5]])).requires_grad_()
    mask = torch.tensor([[False, True, False], [False, True, True]])
    zeros = torch.zeros(2, 3)
    loss, watch = script.grpo_loss(logp, zeros, logp.detach(), torch.tensor([1.0, -1.0]), mask)
    assert loss.item() == pytest.approx((-1.2 + 1.5) / 2) and watch["clipped"] == pytest.approx(1 / 3)
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[0, 0, 0], [0, 0.375, 0.375]]))
    kl = script.grpo_loss(zeros, zeros, zeros - math.log(2), torch.zeros(2), mask, beta=0.5)[0]
    assert kl.item() == pytest.approx(0.5 * (0.5 + math.log(2) - 1))


def test_ppo_rewards_and_advantages():
    """The score at the last token, the charge at each; λ = 1 gives return - V, λ = 0 the one-step error."""
    script = load("ppo")
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, False, False]])
    kl = torch.tensor([[9.0, 0.5, -0.5, 1.0, 9.0], [9.0, 9.0, 2.0, 9.0, 9.0]])
    rewards = script.token_rewards(torch.tensor([1.0, 2.0]), kl, mask, beta=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0, -0.05, 0.05, 0.9, 0], [0, 0, 1.8, 0, 0]]))
    values = torch.tensor([[7, 0.2, 0.4, 0.5, 7], [7, 7, 1.0, 7, 7]])  # what stands outside the mask is not read
    advantage, target = script.gae(rewards, values, mask, lam=1.0)
    torch.testing.assert_close(target[mask], torch.tensor([0.9, 0.95, 0.9, 1.8]))
    torch.testing.assert_close(advantage, (target - values) * mask)
    advantage, _ = script.gae(rewards, values, mask, lam=0.0)
    torch.testing.assert_close(advantage, torch.tensor([[0, 0.15, 0.15, 0.4, 0], [0, 0, 0.8, 0, 0]]))
    advantage, _ = script.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    last, middle = 0.4, 0.05 + 0.5 * 0.5 - 0.4 + 0.25 * 0.4
    torch.testing.assert_close(advantage[0, 1:4], torch.tensor([-0.05 + 0.5 * 0.4 - 0.2 + 0.25 * middle, middle, last]))
    white = script.whiten(torch.tensor([[7.0, 1, 2, 3, 7]]), mask[:1])
    torch.testing.assert_close(white, torch.tensor([[0.0, -1, 0, 1, 0]]))


def test_ppo_value_clip():
    """V_old = 0.2, V = 1, R = 0.9, ε = 0.2: loss 0.125 without a slope, though V is almost right."""
    script = load("ppo")
    value = torch.tensor([[0.0, 1.0]], requires_grad=True)
    mask = torch.tensor([[False, True]])
    loss = script.value_loss(value, torch.tensor([[0.0, 0.2]]), torch.tensor([[0.0, 0.9]]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(0.125) and (value.grad == 0).all()


def test_ppo_score_counts_places():
    script = load("ppo")
    assert [script.score("cba=", a) for a in ("abc.", "abd.", "abc", "abc.abc", "")] == [1, 0.75, 0.75, 4 / 7, 0]


@pytest.mark.parametrize("name", ["grpo", "agent"])
def test_a_group_is_its_own_baseline(name):
    """Rewards of other groups do not matter, and the advantages of a group add up to 0."""
    script = load(name)
    reward = torch.tensor([[0.0, 1.0, 1.0], [5.0, 2.0, 2.0]])
    advantage = script.group_advantage(reward)
    torch.testing.assert_close(advantage.sum(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(script.group_advantage(reward[:1]), advantage[:1])
    if name == "agent":
        torch.testing.assert_close(advantage[1], torch.tensor([2.0, -1.0, -1.0]))


TABLE = dict(zip("abcdefgh", "bcdefgha", strict=True))


def test_agent_stream_and_its_mask():
    """Two look-ups and the right answer: one stream, in which the mask is true on the three turns."""
    script = load("agent")
    e = script.Episode("c", TABLE)
    for turn in ("?c;", "?d;", "=e;"):
        assert not e.done
        e.turn(script.encode(turn), [-0.5] * 3)
    assert script.decode(e.ids) == "c:?c;[d]?d;[e]=e;"
    assert "".join(".^"[m] for m in e.mask) == "..^^^...^^^...^^^"
    assert (e.done, e.reward, e.calls) == (True, 1.0, 2)
    ids, mask, sampled_logp = script.collate([e, script.Episode("a", TABLE)])
    assert ids.shape == mask.shape == sampled_logp.shape == (2, 17)
    assert (sampled_logp[0] == -0.5 * mask[0]).all() and not mask[1].any() and (ids[1, 2:] == script.PAD).all()


@pytest.mark.parametrize(
    "text",
    [";", "c;", "?;", "?cc;", "?c;;", " ?c;", "??c;", "?c", "=?c;", "[c];", "!", "=;", "=:;", "=e;;", " =e;", "?=e;"],
)
def test_agent_answers_anything_else_with_an_error(text):
    """Only an exact call or answer counts. The rest costs a turn, and the episode goes on until turns run out."""
    script = load("agent")
    e = script.Episode("c", TABLE)
    for turn in range(script.MAX_TURNS):
        assert not e.done
        e.turn(script.encode(text))
        assert script.decode(e.ids).endswith("[!]") == (turn < script.MAX_TURNS - 1)
    assert (e.done, e.reward, e.calls) == (True, 0.0, 0)


def test_agent_wrong_answers_end_without_reward():
    script = load("agent")
    for first in ("=d;", "=c;"):
        e = script.Episode("c", TABLE)
        e.turn(script.encode(first))
        assert e.done and e.reward == 0.0


def test_agent_episodes_fit_into_the_model():
    """The longest stream there can be is not longer than the context, and rollouts end."""
    script = load("agent")
    model = script.GPT(len(script.VOCAB), len(script.VOCAB))
    episodes = [script.Episode(*script.make_task()) for _ in range(50)]
    script.rollout(model, episodes)
    assert all(e.done for e in episodes) and max(len(e.ids) for e in episodes) <= 2 + 4 * 4 + 3 * 3 <= 32
