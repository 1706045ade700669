"""Process rewards: loops from the papers, the reductions, and step rewards that cannot be padded."""

import math

import pytest
import torch
import torch.nn.functional as F

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives.process_rewards import (
    REDUCTIONS,
    answer_score,
    hard_estimate,
    implicit_process_rewards,
    min_form,
    process,
    progress,
    soft_estimate,
    two_class_score,
    until_first_error,
)
from posttrain.objectives.reward import outcome

MASK = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]).bool()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_process_against_a_loop():
    score, label = torch.randn(4, 5), torch.rand(4, 5)
    loss, metrics = process(score, label, MASK)
    for i in range(4):
        for t in range(5):
            s, y, inside = score[i, t].item(), label[i, t].item(), bool(MASK[i, t])
            expected = -y * math.log(sigmoid(s)) - (1 - y) * math.log(sigmoid(-s)) if inside else 0.0
            assert loss[i, t].item() == pytest.approx(expected, abs=1e-15)
            assert metrics["accuracy"][i, t].item() == (inside and (s > 0) == (y > 0.5))
            assert metrics["good_share"][i, t].item() == (y if inside else 0)
    torch.testing.assert_close(process(score[:1], label[:1], MASK[:1])[0][MASK[:1]],
                               outcome(score[0][MASK[0]], label[0][MASK[0]])[0])  # fmt: skip
    assert process(torch.zeros(1, 1), torch.ones(1, 1), MASK[1:2, :1])[0].item() == pytest.approx(math.log(2))


def test_whole_number_labels_and_junk_between_steps():
    score = torch.randn(4, 5)
    label = torch.where(MASK, (score > 0.3).long(), -100)
    leaf = torch.where(MASK, score, math.nan).requires_grad_()
    loss, metrics = process(leaf, label, MASK)
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    clean = process(torch.where(MASK, score, 0.0), label.clamp(min=0), MASK)
    torch.testing.assert_close(loss, clean[0])
    torch.testing.assert_close(metrics, clean[1])
    assert not slope[~MASK].any() and slope[MASK].all()


def test_two_classes_are_their_difference():
    logits, label = torch.randn(4, 5, 2), torch.randint(0, 2, (4, 5))
    loss = process(two_class_score(logits), label, MASK)[0]
    expected = F.cross_entropy(logits[MASK], label[MASK], reduction="none")
    torch.testing.assert_close(loss[MASK], expected)
    score = two_class_score(torch.tensor([9.0, 0, math.log(3)]), good=2, bad=1)
    assert score.item() == pytest.approx(math.log(3)) and torch.sigmoid(score).item() == pytest.approx(0.75)


def test_reductions_worked_and_against_loops():
    p = torch.tensor([[0.9, 0.5, 0.8]])
    found = {how: answer_score(p.logit(), torch.ones(1, 3, dtype=torch.bool), how).item() for how in REDUCTIONS}
    assert found == pytest.approx({"min": 0.5, "product": 0.36, "last": 0.8, "mean": 2.2 / 3, "odds": 36 / 37})
    score = torch.randn(4, 5)
    by_hand = {
        "min": min,
        "product": math.prod,
        "last": lambda p: p[-1],
        "mean": lambda p: sum(p) / len(p),
        "odds": lambda p: 1 / (1 + math.prod((1 - x) / x for x in p)),
    }
    for how in REDUCTIONS:
        answer = answer_score(torch.where(MASK, score, math.nan), MASK, how)
        for i in range(4):
            steps = [sigmoid(x) for x in score[i, MASK[i]].tolist()]
            assert answer[i].item() == pytest.approx(by_hand[how](steps) if steps else 0.0)
    assert answer_score(p.logit(), torch.ones(1, 3, dtype=torch.bool)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("how", REDUCTIONS)
def test_reductions_have_gradients_everywhere(how):
    score = torch.randn(4, 5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: answer_score(s, MASK, how), (score,))
    (slope,) = torch.autograd.grad(answer_score(score, MASK, how).sum(), score)
    assert not slope[~MASK].any()
    far = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]], requires_grad=True)
    found = answer_score(far, torch.ones(3, 2, dtype=torch.bool), how)
    (slope,) = torch.autograd.grad(found.sum(), far)
    assert torch.isfinite(slope).all() and ((found >= 0) & (found <= 1)).all()


def test_roll_outs_become_labels():
    right = torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0], [0] * 8, [1, 1, 0, 0, 0, 0, 0, 0], [1] * 8])
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[2, 2:4] = mask[2, 6:] = False
    mask[3] = False
    assert soft_estimate(right, mask).tolist() == [0.25, 0, 0.5, 0]
    assert hard_estimate(right, mask).tolist() == [1, 0, 1, 0]
    junk = torch.where(mask, right, math.nan)
    assert soft_estimate(junk, mask).tolist() == [0.25, 0, 0.5, 0] and hard_estimate(junk, mask)[3] == 0
    assert soft_estimate(right.bool(), mask).dtype == torch.float64
    one = torch.tensor([[False, True, False]])
    assert soft_estimate(torch.tensor([[0.0, 1, 0]]), one).tolist() == [1]
    for place in range(3):
        assert hard_estimate(torch.eye(3)[place][None], one).tolist() == [place == 1]


def test_labels_end_at_the_first_error():
    label = torch.tensor([[0.0, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0] * 5, [0, 1, 1, 0, 0]])
    assert until_first_error(label, MASK).int().tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0] * 5, [0, 1, 1, 0, 0]]
    assert until_first_error(torch.tensor([[1.0, 0, 0]]), torch.ones(1, 3).bool()).tolist() == [[True, True, False]]
    assert until_first_error(torch.tensor([[0.5, 0.4, 1]]), torch.ones(1, 3).bool()).tolist() == [[True, True, False]]


def test_progress_telescopes_and_empty_steps_earn_nothing():
    value, start = torch.rand(4, 5), torch.rand(4)
    found = progress(torch.where(MASK, value, math.nan), MASK, start)
    assert not found[~MASK].any()
    for i in range(4):
        steps = value[i, MASK[i]].tolist()
        before = [start[i].item(), *steps]
        assert found[i, MASK[i]].tolist() == pytest.approx([b - a for a, b in zip(before, steps, strict=False)])
    leaf = torch.where(MASK, value, math.nan).requires_grad_()
    (slope,) = torch.autograd.grad(progress(leaf, MASK, start).square().sum(), leaf)
    assert torch.isfinite(slope).all() and not slope[~MASK].any()
    worked = progress(torch.tensor([[0.5, 0.5, 0.9]]), torch.ones(1, 3).bool(), torch.tensor([0.4]))
    assert worked[0].tolist() == pytest.approx([0.1, 0, 0.4])


def test_min_form_sums_to_the_worst_step():
    reward = torch.rand(4, 5)
    found = min_form(torch.where(MASK, reward, math.nan), MASK, temperature=0.5)
    assert not found[~MASK].any()
    for i in range(4):
        steps = reward[i, MASK[i]].tolist()
        total = sum(math.exp(-r / 0.5) for r in steps)
        assert found[i, MASK[i]].tolist() == pytest.approx([math.exp(-r / 0.5) / total * r for r in steps])
    cold = min_form(reward, MASK, temperature=1e-4).sum(1)
    assert cold.tolist() == pytest.approx([min(reward[i, MASK[i]].tolist(), default=0.0) for i in range(4)])
    assert min_form(torch.ones(1, 2), torch.ones(1, 2).bool(), temperature=7.0).tolist() == [[0.5, 0.5]]
    leaf = torch.where(MASK, reward, math.nan).requires_grad_()
    (slope,) = torch.autograd.grad(min_form(leaf, MASK, temperature=0.5).sum(), leaf)
    assert torch.isfinite(slope).all() and not slope[~MASK].any()
    far = min_form(torch.tensor([[1e4, -1e4]]), torch.ones(1, 2).bool(), temperature=1.0)
    assert far.tolist() == [[0, -1e4]]


def test_implicit_rewards():
    logp, ref = torch.randn(4, 5), torch.randn(4, 5)
    found = implicit_process_rewards(
        torch.where(MASK, logp, math.nan), torch.where(MASK, ref, math.inf), MASK, beta=0.3
    )
    torch.testing.assert_close(found[MASK], 0.3 * (logp - ref)[MASK])
    assert not found[~MASK].any() and not implicit_process_rewards(logp, logp, MASK, beta=1.0).any()


def test_refusals():
    with pytest.raises(ConfigError, match="min, product"):
        answer_score(torch.zeros(1, 1), torch.ones(1, 1).bool(), "sum")
    with pytest.raises(ConfigError, match="positive"):
        min_form(torch.zeros(1, 1), torch.ones(1, 1).bool(), temperature=0.0)
    with pytest.raises(ConfigError, match="two different"):
        two_class_score(torch.zeros(2), good=1, bad=1)
    with pytest.raises(ShapeError):
        progress(torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.zeros(3))
