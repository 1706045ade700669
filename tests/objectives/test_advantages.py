"""`estimate`: every kind is its formula on every token, and what must not change it."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, ShapeError
from posttrain.objectives import advantages as A
from posttrain.objectives.advantages import ADVANTAGES, NEEDS, NEEDS_GROUP, estimate
from posttrain.objectives.returns import last_token, rewards_to_go, token_rewards
from posttrain.objectives.tokens import masked


def batch(n=6, t=5):
    mask = torch.rand(n, t) < 0.7
    mask[:, 0], mask[:, 1] = False, True
    reward = masked((torch.arange(n) % 3 == 0).double()[:, None], last_token(mask))  # 0 or 1: every kind takes it
    rows = {"greedy": torch.rand(2).repeat_interleave(3), "parts": torch.rand(n, 2)}
    tokens = {"old_logp": -torch.rand(n, t), "sum_sq": torch.rand(n, t)}
    return reward, mask, torch.arange(n) // 3, rows, tokens


def run(kind, reward, mask, group, rows, tokens, **kwargs):
    extra = {"baseline": 0.3, "k": 2, **rows, **tokens}
    return estimate(kind, reward, mask, group, **{name: extra[name] for name in NEEDS.get(kind, ())}, **kwargs)


def each(f, rows, tokens):
    """One change to all inputs that are per row, and one to those that are per token."""
    return {n: f(x) for n, x in rows.items()}, {n: f(x) for n, x in tokens.items()}


WITHOUT_CRITIC = [name for name in ADVANTAGES if name != "gae"]
OF_ANSWERS = {
    "center": A.center,
    "zscore": A.zscore,
    "leave_one_out": A.leave_one_out,
    "mean_ratio": A.mean_ratio,
    "pass_at_k": lambda r, g: A.pass_at_k(r, g, k=2),
    "pass_at_k_zscore": lambda r, g: A.pass_at_k_zscore(r, g, k=2),
    "batch_center": lambda r, g: A.batch_center(r),
    "batch_zscore": lambda r, g: A.batch_zscore(r),
    "center_then_scale": A.center_then_scale,
    "center_live": A.center_live,
}


@pytest.mark.parametrize("kind", OF_ANSWERS)
def test_an_answers_advantage_stands_on_each_of_its_tokens(kind):
    reward, mask, group, rows, tokens = batch()
    reward[1] = last_token(mask)[1]  # two of three right: the best of two is not the best of the group
    expected = OF_ANSWERS[kind](reward.sum(1), group)[:, None] * mask
    torch.testing.assert_close(run(kind, reward, mask, group, rows, tokens), expected, atol=0, rtol=0)


def test_kinds_that_read_more_than_the_summed_reward():
    reward, mask, group, rows, tokens = batch()
    reward = torch.randn(6, 5)
    args = reward, mask, group, rows, tokens
    total, to_go = masked(reward, mask).sum(1), rewards_to_go(reward, mask)
    expected = {
        "return": masked(to_go - 0.3, mask),
        "greedy": masked(to_go - rows["greedy"][:, None], mask),
        "batch_whiten": A.whiten(to_go, mask),
        "length_weighted": A.length_weighted(total, group, mask.sum(1))[:, None] * mask,
        "center_then_whiten": A.center_then_whiten(total, group, mask),
        "decoupled": A.decoupled(rows["parts"], group)[:, None] * mask,
        "optimal_token": A.optimal_token(reward, mask, group, *tokens.values()),
    }
    assert {*expected, *OF_ANSWERS} == set(WITHOUT_CRITIC)
    for kind, value in expected.items():
        torch.testing.assert_close(run(kind, *args), value)
    weighted = estimate("decoupled", reward, mask, group, parts=rows["parts"], weights=torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(weighted[:, 1], A.decoupled(rows["parts"], group, torch.tensor([1.0, 3.0])))
    for kind in ("return", "greedy", "batch_whiten"):
        assert not torch.allclose(run(kind, *args, gamma=0.5), run(kind, *args))
    discounted = rewards_to_go(reward, mask, gamma=0.5)
    torch.testing.assert_close(run("return", *args, gamma=0.5), masked(discounted - 0.3, mask))


@pytest.mark.parametrize("kind", WITHOUT_CRITIC)
def test_junk_padding_and_order_change_nothing(kind):
    reward, mask, group, rows, tokens = batch()
    advantage = run(kind, reward, mask, group, rows, tokens)
    assert torch.isfinite(advantage).all() and not advantage[~mask].any() and advantage.any()
    junk = {n: torch.where(mask, x, math.nan) for n, x in tokens.items()}
    torch.testing.assert_close(run(kind, torch.where(mask, reward, math.nan), mask, group, rows, junk), advantage)
    wide = {n: torch.nn.functional.pad(x, (0, 3), value=math.inf) for n, x in {"r": reward, **tokens}.items()}
    found = run(kind, wide.pop("r"), torch.nn.functional.pad(mask, (0, 3)), group, rows, wide)
    torch.testing.assert_close(found[:, :5], advantage)
    order = torch.randperm(6)
    moved = run(kind, reward[order], mask[order], group[order], *each(lambda x: x[order], rows, tokens))
    torch.testing.assert_close(moved, advantage[order])


@pytest.mark.parametrize("kind", WITHOUT_CRITIC)
def test_an_unscored_answer_is_as_good_as_never_sampled(kind):
    """Not as bad as a reward of 0."""
    reward, mask, group, rows, tokens = batch()
    reward[1], rows["parts"][1] = masked(torch.full((5,), math.nan), last_token(mask)[1]), math.nan
    kept = torch.tensor([0, 2, 3, 4, 5])
    found = run(kind, reward, mask, group, rows, tokens)
    alone = run(kind, reward[kept], mask[kept], group[kept], *each(lambda x: x[kept], rows, tokens))
    torch.testing.assert_close(found[kept], alone)
    assert not found[1].any()
    if kind not in ("return", "greedy", "decoupled", "pass_at_k"):  # where others' failures have no say
        zero = run(kind, reward.nan_to_num(0.0), mask, group, rows, tokens)
        assert not torch.allclose(zero[kept], alone)


@pytest.mark.parametrize("kind", WITHOUT_CRITIC)
def test_a_trajectory_in_several_rows_is_one_answer(kind):
    reward, mask, group, rows, tokens = batch()
    reward = torch.where(mask, reward, math.nan)
    mask[0] = torch.tensor([False, True, True, True, True])
    mask[4] = torch.tensor([False, True, True, True, True])
    reward[0], reward[4] = masked(torch.tensor([9.0, 0, 0, 0, 1]), mask[0]), masked(torch.zeros(5), mask[4])
    first = torch.arange(5) < 3
    rows_of = torch.tensor([0, 4, 1, 0, 2, 3, 4, 5])  # segments in order, but not side by side
    split = mask[rows_of]
    split[0], split[3], split[1], split[6] = mask[0] & first, mask[0] & ~first, mask[4] & first, mask[4] & ~first
    found = run(
        kind,
        reward[rows_of],
        split,
        group[rows_of],
        *each(lambda x: x[rows_of], rows, tokens),
        trajectory=torch.tensor([7, 9, 1, 7, 2, 3, 9, 5]),
        **({"gamma": 0.8} if kind in ("return", "greedy", "batch_whiten") else {}),
    )
    whole = run(
        kind, reward, mask, group, rows, tokens,
        **({"gamma": 0.8} if kind in ("return", "greedy", "batch_whiten") else {}),
    )  # fmt: skip
    torch.testing.assert_close(torch.zeros(6, 5).index_add(0, rows_of, found), whole)


@pytest.mark.parametrize("kind", WITHOUT_CRITIC)
def test_an_empty_mask_gives_zeros(kind):
    reward, mask, group, rows, tokens = batch()
    found = run(kind, torch.full_like(reward, math.nan), torch.zeros_like(mask), group, rows, tokens)
    assert found.shape == mask.shape and not found.any()
    mask[2] = False  # a row that was filtered out whole
    assert run(kind, reward, mask, group, rows, tokens).isfinite().all()


@pytest.mark.parametrize("kind", sorted(NEEDS_GROUP))
def test_a_kind_that_needs_a_group_says_nothing_without(kind):
    reward, mask, _, rows, tokens = batch()
    assert not run(kind, reward, mask, torch.arange(6), rows, tokens).any()


@pytest.mark.parametrize("kind", sorted(set(WITHOUT_CRITIC) - NEEDS_GROUP))
def test_the_others_do_without_a_group(kind):
    reward, mask, _, rows, tokens = batch()
    assert run(kind, reward, mask, torch.arange(6), rows, tokens).any()


def test_the_greedy_answer_without_reward_leaves_its_prompt_out():
    reward, mask, group, rows, tokens = batch()
    whole = run("greedy", reward, mask, group, rows, tokens)
    rows["greedy"][:3] = math.nan
    found = run("greedy", reward, mask, group, rows, tokens)
    assert not found[:3].any() and torch.equal(found[3:], whole[3:])


def test_rewards_with_a_leash_and_an_answer_without_reward():
    """What `token_rewards` makes of a missing score arrives here as a missing reward."""
    _, mask, group, *_ = batch()
    score = torch.tensor([1.0, math.nan, 0, 1, 0, 0])
    kl = torch.randn(6, 5)
    found = estimate("leave_one_out", token_rewards(score, mask, kl=kl, beta=0.1), mask, group)
    total = score - 0.1 * masked(kl, mask).sum(1)
    torch.testing.assert_close(found[0, 1], total[0] - total[2])
    assert not found[1].any()


def test_estimate_refuses_what_it_cannot_use():
    reward, mask, group, rows, tokens = batch()
    for kind, needs in NEEDS.items():
        for name in needs:
            given = {n: x for n, x in {"baseline": 0.0, "k": 2, **rows, **tokens}.items() if n in needs - {name}}
            with pytest.raises(ConfigError, match=f'"{kind}" with {name} = None'):
                estimate(kind, reward, mask, group, **given)
            with pytest.raises(ConfigError, match=f'"center" with {name} = given: .* no other'):
                estimate("center", reward, mask, group, **{name: {"baseline": 0.0, "k": 2, **rows, **tokens}[name]})
    with pytest.raises(ConfigError, match="gamma = 0.9: it reads the whole reward"):
        estimate("zscore", reward, mask, group, gamma=0.9)
    with pytest.raises(ConfigError, match='"greedy" with weights = given'):
        estimate("greedy", reward, mask, group, greedy=rows["greedy"], weights=torch.ones(2))
    with pytest.raises(ConfigError, match="critic"):
        estimate("gae", reward, mask, group)
    with pytest.raises(ConfigError, match='"centre" is not one of return, greedy, center'):
        estimate("centre", reward, mask, group)
    for name, value in (("greedy", rows["greedy"][:2]), ("parts", rows["parts"][:2])):
        with pytest.raises(ShapeError):
            estimate("greedy" if name == "greedy" else "decoupled", reward, mask, group, **{name: value})
    with pytest.raises(ShapeError):
        estimate("center", reward, mask, group[:2])
