"""Preference losses that are not on pairs: single verdicts, rankings, games; and what is made before a loss."""

import itertools
import math

import pytest
import torch
from preference_table import nls, sigma

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives import preference as p
from posttrain.objectives.peers import trl_nash_md
from posttrain.objectives.tokens import answers

GOOD = torch.tensor([True, False, True, False])


def sums(n: int = 4):
    return -1 - 9 * torch.rand(n), -1 - 9 * torch.rand(n)


# --- single verdicts ---


def test_kto_against_plain_python():
    logp, ref = sums()
    settings = {"reference_point": 0.5, "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    loss, metrics = p.kto(logp, ref, GOOD, **settings)
    expected = [
        1.2 * (1 - sigma(0.3 * (float(u) - 0.5))) if good else 0.7 * (1 - sigma(0.3 * (0.5 - float(u))))
        for u, good in zip(logp - ref, GOOD, strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected))
    torch.testing.assert_close(metrics["reward"], 0.3 * (logp - ref))
    assert metrics["good_share"].tolist() == [1.0, 0.0, 1.0, 0.0]
    leaves = (logp.requires_grad_(), ref.requires_grad_())
    assert torch.autograd.gradcheck(lambda *a: p.kto(*a, GOOD, **settings)[0], leaves)
    assert not p.kto(*leaves, GOOD, **settings)[1]["reward"].requires_grad


def test_kto_worked_numbers():
    loss, _ = p.kto(torch.tensor([-12.0, -20.0]), torch.tensor([-13.0, -18.0]), GOOD[:2], reference_point=0.5, beta=0.1)
    assert loss.tolist() == pytest.approx([0.487503, 0.437823], abs=6e-7)
    here = torch.zeros(2, requires_grad=True)
    loss, _ = p.kto(here, torch.zeros(2), GOOD[:2], reference_point=0.0, beta=0.1)
    assert loss.tolist() == [0.5, 0.5]
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), here)[0], torch.tensor([-0.025, 0.025]))


def test_kto_reference_point():
    logp = torch.tensor([3.0, 1.0], requires_grad=True)
    point = p.kto_reference_point(logp, torch.zeros(2))
    assert point == 2 and not point.requires_grad
    assert p.kto_reference_point(torch.tensor([1.0, -3.0]), torch.zeros(2)) == 0
    assert p.kto_reference_point(torch.tensor([1.0, -3.0]), torch.tensor([0.0, -6.0])) == 2


def test_bco_against_plain_python():
    logp, ref = sums()
    loss, metrics = p.bco(logp, ref, GOOD, shift=0.4, beta=0.3)
    expected = [nls((1 if good else -1) * (0.3 * float(u) - 0.4)) for u, good in zip(logp - ref, GOOD, strict=True)]
    torch.testing.assert_close(loss, torch.tensor(expected))
    torch.testing.assert_close(metrics["reward"], 0.3 * (logp - ref))
    assert metrics["good_share"].tolist() == [1.0, 0.0, 1.0, 0.0]
    leaves = (logp.requires_grad_(), ref.requires_grad_())
    assert torch.autograd.gradcheck(lambda *a: p.bco(*a, GOOD, shift=0.4, beta=0.3)[0], leaves)
    at_shift, _ = p.bco(torch.full((2,), 4.0), torch.zeros(2), GOOD[:2], shift=1.2, beta=0.3)
    torch.testing.assert_close(at_shift, torch.full((2,), math.log(2)))


def test_unpaired_losses_of_a_pair_add_up_to_those_on_pairs():
    (w, rw), (lo, rl) = sums(3), sums(3)
    good = torch.arange(6) < 3
    both = torch.cat([w, lo]), torch.cat([rw, rl]), good
    zero = p.apo_zero_unpaired(*both, beta=0.3)[0]
    torch.testing.assert_close(zero[:3] + zero[3:], p.apo_zero(w, lo, rw, rl, beta=0.3)[0])
    classified = p.bco(*both, shift=0.0, beta=0.3)[0]
    torch.testing.assert_close(classified[:3] + classified[3:], p.bco_pair(w, lo, rw, rl, beta=0.3)[0])
    weighted = p.apo_zero_unpaired(*both, beta=0.3, desirable_weight=2.0, undesirable_weight=3.0)[0]
    torch.testing.assert_close(weighted, zero * torch.where(good, 2.0, 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unpaired_losses_stay_finite(dtype):
    logp = torch.tensor([1e4, 1e4, -1e4, -1e4], dtype=dtype, requires_grad=True)
    ref = torch.zeros(4, dtype=dtype)
    for make in (lambda: p.kto(logp, ref, GOOD, reference_point=3.0, beta=1.0),
                 lambda: p.bco(logp, ref, GOOD, shift=3.0, beta=1.0)):  # fmt: skip
        loss = make()[0]
        assert loss.dtype == dtype and torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), logp)[0]).all()


# --- rankings ---


def test_ranking_of_two_is_dpo_and_of_k_costs_log_k_factorial():
    (w, rw), (lo, rl) = sums(3), sums(3)
    logp, ref = torch.stack([w, lo], 1), torch.stack([rw, rl], 1)
    loss, metrics = p.dpo_ranking(logp, ref, torch.ones(3, 2).bool(), beta=0.3)
    pair, same = p.dpo(w, lo, rw, rl, beta=0.3)
    torch.testing.assert_close(loss, pair)
    assert metrics["accuracy"].tolist() == same["accuracy"].tolist()
    four = torch.randn(1, 4)
    torch.testing.assert_close(p.dpo_ranking(four, four, four < 9, beta=0.3)[0], torch.tensor([math.log(24)]))


def test_ranking_against_plain_python():
    logp, ref, mask = -5 * torch.rand(3, 4), -5 * torch.rand(3, 4), torch.arange(4) < torch.tensor([[4], [2], [0]])
    expected = []
    for u, alive in zip(0.3 * (logp - ref), mask, strict=True):
        u = [float(x) for x in u[alive]]
        expected.append(sum(math.log(sum(math.exp(x) for x in u[k:])) - u[k] for k in range(len(u))))
    junk = torch.where(mask, logp, math.nan).requires_grad_()
    loss, _ = p.dpo_ranking(junk, torch.where(mask, ref, math.inf), mask, beta=0.3)
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert torch.isfinite(junk.grad).all() and not junk.grad[~mask].any()


def plain_rrhf(logp, length, reward, power, nll) -> tuple[float, float]:
    p_ = [s / n**power for s, n in zip(logp, length, strict=True)]
    worse = [(i, j) for i, j in itertools.permutations(range(len(p_)), 2) if reward[i] < reward[j]]
    best = reward.index(max(reward))
    share = sum(p_[i] < p_[j] for i, j in worse) / max(1, len(worse))
    return sum(max(0.0, p_[i] - p_[j]) for i, j in worse) - nll * logp[best] / length[best], share


@pytest.mark.parametrize("power, nll", [(1.0, 1.0), (0.5, 0.3), (0.0, 0.0)])
def test_rrhf_against_plain_python(power, nll):
    logp, length = -9 * torch.rand(4, 4), torch.randint(1, 6, (4, 4)).double()
    reward = torch.tensor([[1.0, 3, 2, 9], [2, 2, 1, 0], [0, 5, 9, 9], [-1, -3, 4, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    expected = [
        plain_rrhf(*(x[m].tolist() for x in row), power, nll)
        for m, *row in zip(mask, logp, length, reward, strict=True)
    ]
    junk = torch.where(mask, logp, math.nan).requires_grad_()
    loss, metrics = p.rrhf(junk, length.masked_fill(~mask, math.nan), reward, mask, power=power, nll=nll)
    torch.testing.assert_close(loss, torch.tensor([x for x, _ in expected]))
    torch.testing.assert_close(metrics["accuracy"], torch.tensor([x for _, x in expected]))
    loss.sum().backward()
    assert torch.isfinite(junk.grad).all() and not junk.grad[~mask].any()
    leaf = logp.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: p.rrhf(x, length, reward, mask, power=power, nll=nll)[0], leaf)


def test_rrhf_by_hand_and_without_answers_or_tokens():
    one = torch.ones(1, 2)
    silent, _ = p.rrhf(torch.tensor([[0.0, -2.0]]), 0 * one, torch.tensor([[0.0, 1.0]]), one > 0)
    assert silent.item() == 2 + 2
    loss, _ = p.rrhf(torch.tensor([[-1.0, -2.0]]), one, torch.tensor([[0.0, 1.0]]), one > 0)
    assert loss.item() == 1 + 2
    empty, metrics = p.rrhf(one, one, one, one < 0)
    assert empty.item() == 0 and metrics["accuracy"].item() == 0


def test_tpo_is_cpo_with_imitation_of_the_gold_answer():
    chosen, rejected = sums()
    gold, length = sums()[0], torch.tensor([1.0, 2.0, 4.0, 0.0])
    loss, metrics = p.tpo(gold, chosen, rejected, gold_length=length, beta=0.3, nll=0.7)
    expected = [
        nls(0.3 * float(w - lo)) - 0.7 * float(g) / max(1.0, float(n))
        for w, lo, g, n in zip(chosen, rejected, gold, length, strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected))
    torch.testing.assert_close(metrics["margin"], 0.3 * (chosen - rejected))
    leaves = tuple(x.requires_grad_() for x in (gold, chosen, rejected))
    assert torch.autograd.gradcheck(lambda *a: p.tpo(*a, gold_length=length, beta=0.3)[0], leaves)


# --- games ---


def test_sppo_against_plain_python():
    logp, ref = sums()
    rate = torch.tensor([0.0, 0.3, 0.5, 1.0])
    loss, metrics = p.sppo(logp, ref, rate, beta=0.3)
    expected = [(float(u) - (float(q) - 0.5) / 0.3) ** 2 for u, q in zip(logp - ref, rate, strict=True)]
    torch.testing.assert_close(loss, torch.tensor(expected))
    torch.testing.assert_close(metrics["reward"], 0.3 * (logp - ref))
    hard = p.sppo_hard(logp[:1], logp[1:2], ref[:1], ref[1:2], beta=0.3)[0]
    both = p.sppo(logp[:2], ref[:2], torch.tensor([1.0, 0.0]), beta=0.3)[0]
    torch.testing.assert_close(hard, both.sum(0, keepdim=True))
    assert p.sppo(torch.ones(1), torch.ones(1), torch.tensor([0.5]), beta=0.3)[0] == 0


def test_nash_md_is_the_gradient_of_the_leashed_win_rate():
    """Over three answers of two tokens with all probabilities at hand, the surrogate's mean gradient is exact."""
    logits = torch.randn(3, requires_grad=True)
    ref, wins, split = torch.randn(3).log_softmax(0), torch.rand(3), torch.rand(3)
    logp = logits.log_softmax(0)
    exact = (logp.exp() * (0.5 - wins + 0.3 * (logp - ref))).sum()
    target = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    tokens = torch.stack([torch.full((3,), math.nan), split * logp, (1 - split) * logp], 1)
    ref_tokens = torch.stack([torch.full((3,), math.inf), 0.2 * ref, 0.8 * ref], 1)
    mask = torch.tensor([False, True, True]).expand(3, 3)
    loss, metrics = p.nash_md(tokens, ref_tokens, mask, wins, beta=0.3)
    found = torch.autograd.grad((logp.detach().exp() * loss).sum(), logits)[0]
    torch.testing.assert_close(found, target)
    torch.testing.assert_close(metrics["kl"], (logp - ref).detach())
    torch.testing.assert_close(metrics["win_rate"], wins)


def test_nash_md_against_plain_python_and_without_a_reason_to_move():
    logp, mask = -torch.rand(2, 3), torch.tensor([[False, True, True], [False, True, False]])
    ref, wins = -torch.rand(2, 3), torch.tensor([0.9, 0.2])
    loss, _ = p.nash_md(logp, ref, mask, wins, beta=0.3)
    (total, _), (ref_total, _) = answers(logp, mask), answers(ref, mask)
    expected = [-(w - 0.5 - 0.3 * (a - b)) * a for w, a, b in zip(wins, total, ref_total, strict=True)]
    torch.testing.assert_close(loss, torch.stack(expected))
    leaf, judged = logp.clone().requires_grad_(), wins.clone().requires_grad_()
    for formula in (p.nash_md, trl_nash_md):
        loss = formula(leaf, ref, mask, judged, beta=0.3)[0]
        assert torch.autograd.grad(loss.sum(), judged, allow_unused=True) == (None,)
    still = p.nash_md(leaf, logp, mask, torch.full((2,), 0.5), beta=0.3)[0]
    assert not torch.autograd.grad(still.sum(), leaf)[0].any()


def test_trl_charges_a_token_for_itself_alone():
    logp, ref, wins = -torch.rand(2, 3), -torch.rand(2, 3), torch.tensor([0.9, 0.2])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    leaf = torch.where(mask, logp, math.nan).requires_grad_()
    loss, metrics = trl_nash_md(leaf, ref, mask, wins, beta=0.3)
    slope = torch.autograd.grad(loss.sum(), leaf)[0]
    torch.testing.assert_close(slope, torch.where(mask, 0.3 * (logp - ref) - (wins[:, None] - 0.5), 0.0))
    ours, same = p.nash_md(logp, ref, mask, wins, beta=0.3)
    torch.testing.assert_close(loss[1], ours[1])  # one token
    assert abs(loss[0] - ours[0]) > 1e-3
    torch.testing.assert_close(metrics, same)


def test_in_order():
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    wins = torch.tensor([True, False])
    chosen, rejected = p.in_order(first, second, wins)
    assert chosen.tolist() == [1, 4] and rejected.tolist() == [3, 2]
    chosen, _ = p.in_order(first[:, None].expand(2, 3), second[:, None].expand(2, 3), wins)
    assert chosen.tolist() == [[1, 1, 1], [4, 4, 4]]
    for bad in ((first, second[:1], wins), (first, second, wins[:1])):
        with pytest.raises(ShapeError):
            p.in_order(*bad)


def test_best_and_worst():
    reward = torch.tensor([1.0, 5, 3, 2, 2, 0, 7, 0])
    group = torch.tensor([4, 2, 4, 9, 9, 4, 2, 2])
    best, worst = p.best_and_worst(reward, group)
    assert best.tolist() == [6, 2] and worst.tolist() == [7, 5]  # prompts 2 and 4; prompt 9 is a tie
    best, worst = p.best_and_worst(torch.tensor([1.0, 3, 2, 3, 1]), torch.zeros(5))
    assert best.tolist() == [1] and worst.tolist() == [0]
    none, _ = p.best_and_worst(torch.ones(3), torch.zeros(3))
    assert len(none) == 0
    many, of = torch.randint(0, 3, (300,)).double(), torch.randint(0, 9, (300,))
    best, worst = p.best_and_worst(many, of)
    for k in range(9):
        mine = [i for i in range(300) if of[i] == k]
        assert best[k] == max(mine, key=lambda i: (many[i], -i)) and worst[k] == min(mine, key=lambda i: (many[i], i))


# --- policies made of two ---


def test_moved_reference():
    policy = torch.ones(2, requires_grad=True)
    once = p.moved_reference(torch.zeros(2, requires_grad=True), policy, share=0.6)
    twice = p.moved_reference(once, policy, share=0.6)
    torch.testing.assert_close(twice, torch.full((2,), 0.84))
    assert not twice.requires_grad
    old = torch.randn(3)
    assert torch.equal(p.moved_reference(torch.randn(3), old, share=1.0), old)


def test_mixture_logits():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    for share in (0.0, 0.3, 1.0):
        mixed = p.mixture_logits(a, b, share=share)
        weight = a.softmax(1) ** (1 - share) * b.softmax(1) ** share
        torch.testing.assert_close(mixed.exp(), weight / weight.sum(1, keepdim=True))
    torch.testing.assert_close(p.mixture_logits(a, a, share=0.4), a.log_softmax(1))


# --- labels of a judge ---


def test_labels_of_a_judge_who_loves_the_first_place():
    gap, swapped = torch.tensor([1 + 1.5]), torch.tensor([-1 + 1.5])
    first = p.judge_label(torch.tensor([-0.3, -1.0, -2.0]), torch.tensor([-0.3, -2.0, -1.0]))
    assert first.tolist() == pytest.approx([0.5, 0.731059, 0.268941], abs=6e-7)
    assert p.judge_label(gap, torch.zeros(1)).item() == pytest.approx(0.924142, abs=6e-7)
    assert p.judge_label(swapped, torch.zeros(1)).item() == pytest.approx(0.622459, abs=6e-7)
    assert p.swap_average(gap, swapped).item() == pytest.approx(0.650841, abs=6e-7)
    assert p.swap_logit_average(gap, swapped).item() == pytest.approx(0.731059, abs=6e-7)
    flags = p.position_biased(torch.tensor([2.5, 1, -1, -0.1, 0, 1]), torch.tensor([0.5, -1, 1, -3, 1, 0]))
    assert flags.tolist() == [1, 0, 0, 1, 0, 0]


def test_both_orders_are_treated_alike():
    """Naming the two answers the other way round gives the other probability."""
    gap, swapped = torch.randn(5), torch.randn(5)
    for average in (p.swap_average, p.swap_logit_average):
        torch.testing.assert_close(average(gap, swapped), 1 - average(swapped, gap))


def test_clamped_labels():
    q = torch.tensor([0.1, 0.45, 0.99])
    assert p.clamped_label(q).tolist() == [0.4, 0.45, 0.6]
    assert p.clamped_label(q, low=0.2, high=0.9).tolist() == [0.2, 0.45, 0.9]
    gap = torch.tensor([math.log(1.5)], requires_grad=True)
    zero = torch.zeros(1)
    loss = p.soft_dpo(gap, zero, zero, zero, probability=p.clamped_label(torch.tensor([0.97])), beta=1.0)[0]
    assert abs(torch.autograd.grad(loss.sum(), gap)[0]) < 1e-12


def test_expected_rating():
    share = torch.zeros(10)
    share[3:9] = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    found = p.expected_rating(torch.stack([share.log(), share.log() + 3]))
    assert found.tolist() == pytest.approx([0.177778] * 2, abs=6e-7)
    ends = p.expected_rating(torch.tensor([[0.0, -1e4, -1e4], [-1e4, -1e4, 0.0]]))
    assert ends.tolist() == [-1, 1]


# --- rejection sampling as weights ---

REWARD = torch.tensor([[0.7, 0.3, 0.5, 0.2], [0.4, 0.8, 0.6, 0.5], [0.9, 0.3, 0.4, 0.7], [0.2, 0.5, 0.8, 0.6],
                       [0.5, 0.4, 0.3, 0.6]], dtype=torch.float64)  # fmt: skip
PROMPT = torch.arange(5)[:, None].expand(5, 4)


def test_best_per_prompt_and_overall():
    kept = p.keep_best(REWARD.flatten(), PROMPT.flatten()).reshape(5, 4)
    assert kept.argmax(1).tolist() == [0, 1, 0, 2, 3] and kept.sum() == 5
    overall = p.keep_overall(REWARD.flatten(), k=5).reshape(5, 4)
    assert sorted(REWARD[overall > 0].tolist()) == [0.7, 0.7, 0.8, 0.8, 0.9]
    assert overall.sum(1).tolist() == [1, 1, 2, 1, 0]
    assert p.keep_overall(torch.tensor([0.9, 0.8, 0.5, 0.4]), k=2).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_best_of_ragged_groups_in_any_order(k):
    reward = torch.tensor([1.0, 4, 4, 2, 4, 3, 0])
    group = torch.tensor([7, 3, 3, 7, 3, 3, 5])
    expected = []
    for i in range(7):
        before = [j for j in range(7) if group[j] == group[i] and (-reward[j], j) < (-reward[i], i)]
        expected.append(float(len(before) < k))
    assert p.keep_best(reward, group, k=k).tolist() == expected
    many = torch.randint(0, 3, (300,)).double()
    first = sorted(range(300), key=lambda i: (-many[i], i))[:k]
    assert p.keep_best(many, torch.zeros(300), k=k).nonzero()[:, 0].tolist() == sorted(first)
    assert p.keep_overall(many, k=k).nonzero()[:, 0].tolist() == sorted(first)


def test_threshold():
    assert p.keep_above(torch.tensor([0.0, 0.5, 1.0]), threshold=0.5).tolist() == [0, 0, 1]


def test_reward_weighted():
    reward, group = torch.tensor([0.0, 5.0, math.log(3), 7.0]), torch.tensor([2, 0, 2, 0])
    weights = p.reward_weighted(reward, group, temperature=1.0)
    torch.testing.assert_close(weights[[0, 2]], torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(weights[[1, 3]], torch.tensor([5.0, 7.0]).softmax(0))
    half = p.reward_weighted(reward, group, temperature=0.5)
    torch.testing.assert_close(half[[0, 2]], torch.tensor([0.1, 0.9]))
    cold = p.reward_weighted(1e4 * reward, group, temperature=1e-3)
    torch.testing.assert_close(cold, p.keep_best(reward, group))


def test_rso_acceptance_makes_the_tilted_distribution():
    """Accepted draws from π follow π e^{r/β} / Z where every answer is a candidate."""
    reward, policy = torch.randn(5), torch.randn(5).softmax(0)
    accept = p.rso_acceptance(reward, torch.zeros(5), beta=0.5)
    assert accept.max() == 1
    drawn = policy * accept / (policy * accept).sum()
    torch.testing.assert_close(drawn, (policy.log() + reward / 0.5).softmax(0))
    lower = p.rso_acceptance(torch.tensor([1.0, 0.5, 9.0]), torch.tensor([0, 0, 1]), beta=0.5)
    torch.testing.assert_close(lower, torch.tensor([1.0, math.exp(-1), 1.0]))


def test_quantile_reward():
    anchors = torch.tensor([[0.0, 1.0, 2.0]]).expand(4, 3)
    q = p.quantile_reward(torch.tensor([-1.0, 0.0, 1.5, 2.0]), anchors)
    torch.testing.assert_close(q, torch.tensor([1 / 4, 2 / 4, 3 / 4, 4 / 4]).log())


@pytest.mark.parametrize("n", [2, 5])
def test_bond_is_the_gradient_of_the_jeffreys_divergence(n):
    """With all probabilities at hand and π_BoN ∝ π_ref p_≤^{n-1}, which leaves out the correction for ties."""
    logits = torch.randn(4, requires_grad=True)
    ref, quantile = torch.randn(4).log_softmax(0), torch.tensor([0.2, 0.5, 0.7, 1.0]).log()
    best = (ref + (n - 1) * quantile).log_softmax(0)
    logp = logits.log_softmax(0)
    forward = (best.exp() * (best - logp)).sum()
    backward = (logp.exp() * (logp - best)).sum()
    target = torch.autograd.grad(0.7 * forward + 0.3 * backward, logits, retain_graph=True)[0]
    own, metrics = p.bond(logp, ref, quantile, torch.zeros(4), n=n, jeffreys=0.3, baseline=-0.4)
    theirs, _ = p.bond(torch.zeros(4), torch.zeros(4), quantile, logp, n=n, jeffreys=0.3)
    total = (logp.detach().exp() * own).sum() + (best.exp() * theirs).sum()
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], target)
    torch.testing.assert_close(metrics["kl"], (logp - ref).detach())
    torch.testing.assert_close(metrics["reward"], quantile)


def test_bond_against_plain_python_and_at_the_reference():
    logp, ref, q, best = -torch.rand(3), -torch.rand(3), -torch.rand(3), -torch.rand(3)
    loss, _ = p.bond(logp, ref, q, best, n=3, jeffreys=0.3, baseline=-0.2)
    gain = q - (logp - ref) / 2 + 0.2
    torch.testing.assert_close(loss, -0.7 * best - 0.3 * 2 * gain * logp)
    learned = q.clone().requires_grad_()
    assert not p.bond(logp, ref, learned, best, n=3)[0].requires_grad
    leaf = ref.clone().requires_grad_()
    still, _ = p.bond(leaf, ref, torch.full((3,), -0.5), best, n=3, jeffreys=0.3, baseline=-0.5)
    assert not torch.autograd.grad(still.sum(), leaf)[0].any()
    half, _ = p.bond(logp, ref, q, best, n=3)
    torch.testing.assert_close(half, p.bond(logp, ref, q, best, n=3, jeffreys=0.5, baseline=0.0)[0])


# --- errors ---


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda x: p.moved_reference(x, x, share=0.0), r"in \(0, 1\]"),
        (lambda x: p.moved_reference(x, x, share=1.5), r"in \(0, 1\]"),
        (lambda x: p.mixture_logits(x, x, share=-0.1), "between 0 and 1"),
        (lambda x: p.mixture_logits(x, x, share=1.1), "between 0 and 1"),
        (lambda x: p.clamped_label(x, low=0.7, high=0.6), "low <= high"),
        (lambda x: p.clamped_label(x, low=0.0, high=0.6), "0 < low"),
        (lambda x: p.clamped_label(x, low=0.4, high=1.0), "high < 1"),
        (lambda x: p.keep_best(x, x, k=0), "must be positive"),
        (lambda x: p.keep_overall(x, k=0), "must be positive"),
        (lambda x: p.reward_weighted(x, x, temperature=0.0), "must be positive"),
        (lambda x: p.rso_acceptance(x, x, beta=-1.0), "must be positive"),
        (lambda x: p.bond(x, x, x, x, n=1), "Use 2 or more"),
        (lambda x: p.bond(x, x, x, x, n=2, jeffreys=1.1), "between 0 and 1"),
        (lambda x: p.bond(x, x, x, x, n=2, jeffreys=-0.1), "between 0 and 1"),
    ],
)
def test_refusals(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make(torch.rand(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: p.kto_reference_point(x, y),
        lambda x, y: p.kto(x, y, x, reference_point=0.0, beta=1.0),
        lambda x, y: p.bco(x, y, x, shift=0.0, beta=1.0),
        lambda x, y: p.dpo_ranking(x[None], y[None], x[None] > 0, beta=1.0),
        lambda x, y: p.rrhf(x[None], x[None], y[None], x[None] > 0),
        lambda x, y: p.tpo(x, x, y, gold_length=x, beta=1.0),
        lambda x, y: p.sppo(x, x, y, beta=1.0),
        lambda x, y: p.nash_md(x[None], x[None], x[None] > 0, y, beta=1.0),
        lambda x, y: p.best_and_worst(x, y),
        lambda x, y: p.moved_reference(x, y, share=0.5),
        lambda x, y: p.mixture_logits(x, y, share=0.5),
        lambda x, y: p.judge_label(x, y),
        lambda x, y: p.swap_average(x, y),
        lambda x, y: p.swap_logit_average(x, y),
        lambda x, y: p.position_biased(x, y),
        lambda x, y: p.clamped_label(x[None]),
        lambda x, y: p.expected_rating(x),
        lambda x, y: p.keep_best(x, y),
        lambda x, y: p.keep_above(x[None], threshold=0.0),
        lambda x, y: p.reward_weighted(x, y, temperature=1.0),
        lambda x, y: p.rso_acceptance(x, y, beta=1.0),
        lambda x, y: p.quantile_reward(x, y[:, None]),
        lambda x, y: p.bond(x, x, x, y, n=2),
        lambda x, y: p.implicit_reward(x[None], y[None], x[None] > 0, beta=1.0),
    ],
)
def test_shapes_are_checked(make):
    with pytest.raises(ShapeError):
        make(torch.rand(3), torch.rand(2))
