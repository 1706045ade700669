"""Batches: what is padded, what is refused, what a cut keeps together, and weights that do not know of cuts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.batch import TokenBatch, collate, collate_groups, collate_pairs, cut_at_stop, weigh, weigh_rows
from posttrain.errors import DataError
from posttrain.objectives.average import Average
from posttrain.records import Group, Message, Score, Segment, Stop, Task, Trajectory


def segment(length: int, prompt: int = 1, first: int = 10, logp: bool = True) -> Segment:
    values = (math.nan,) * prompt + tuple(-0.1 * (t + 1) for t in range(length - prompt))
    return Segment(
        tokens=tuple(range(first, first + length)),
        mask=(False,) * prompt + (True,) * (length - prompt),
        logp=values if logp else (),
    )


def trajectory(*segments: Segment, value: float | None = 1.0, temperature: float = 1.0) -> Trajectory:
    task = Task("t", (Message("user", "?"),))
    score = None if value is None else Score(value)
    return Trajectory(task, task.prompt, segments, Stop.END, 0, temperature, score)


def batch(lengths=(3, 7, 4, 6), group=None) -> TokenBatch:
    return collate([segment(n) for n in lengths], group=group or list(range(len(lengths))))


# --- rows ---------------------------------------------------------------------------------------------------------


def test_rows_stand_left_and_padding_right():
    b = collate([segment(3), segment(5, prompt=2)], pad_id=9)
    assert b.tokens.tolist() == [[10, 11, 12, 9, 9], [10, 11, 12, 13, 14]]
    assert b.attend.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert b.mask.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]
    assert b.lengths.tolist() == [3, 5] and len(b) == 2
    torch.testing.assert_close(b.sampled_logp[0], torch.tensor([0.0, -0.1, -0.2, 0.0, 0.0]))


def test_the_first_token_is_never_learned():
    assert not collate([segment(4, prompt=0)]).mask[0, 0]


def test_no_rows_is_told():
    with pytest.raises(DataError, match="nothing is left to train on"):
        collate([])


def test_a_chosen_token_without_a_log_probability_is_named():
    broken = Segment((1, 2, 3), (False, True, True), (math.nan, -0.5, math.nan))
    with pytest.raises(DataError, match="row 1: token 2 is marked as chosen by the policy but has no log-probability"):
        collate([segment(3), broken])


def test_demonstrations_have_no_sampled_log_probabilities():
    assert collate([segment(3, logp=False)]).sampled_logp is None


# --- groups -------------------------------------------------------------------------------------------------------


def test_unscored_trajectories_are_left_out_and_not_zero():
    task = Task("t", (Message("user", "?"),))
    members = (trajectory(segment(3), value=0.5), trajectory(segment(4), value=None), trajectory(segment(5), value=2.0))
    b, rewards = collate_groups([Group(task, members), Group(task, (trajectory(segment(6), value=-1.0),))])
    assert rewards.tolist() == [0.5, 2.0, -1.0]
    assert b.lengths.tolist() == [3, 5, 6]
    assert b.group.tolist() == [0, 0, 1] and b.trajectory.tolist() == [0, 1, 2]


def test_two_segments_are_one_trajectory():
    task = Task("t", (Message("user", "?"),))
    group = Group(task, (trajectory(segment(3), segment(4), temperature=0.7), trajectory(segment(5), temperature=0.0)))
    b, rewards = collate_groups([group])
    assert b.trajectory.tolist() == [0, 0, 1] and rewards.tolist() == [1.0, 1.0]
    torch.testing.assert_close(b.temperature, torch.tensor([0.7, 0.7, 1.0]))  # greedy is recorded at 1


def test_a_batch_without_scores_is_told():
    group = Group(Task("t", ()), (trajectory(segment(3), value=None),))
    with pytest.raises(DataError, match="a batch of no rows"):
        collate_groups([group])


# --- pairs --------------------------------------------------------------------------------------------------------


def test_pairs_take_turns():
    b = collate_pairs([(segment(3), segment(4)), (segment(5), segment(6))], [0.5, None])
    assert b.label.tolist() == [1, -1, 1, -1] and b.group.tolist() == [0, 0, 1, 1]
    assert b.margin.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert collate_pairs([(segment(3), segment(4))], [None]).margin is None


# --- cuts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=12),
    budget=st.integers(1, 40),
    size=st.integers(1, 4),
    together=st.sampled_from(["row", "group", "trajectory"]),
)
def test_a_split_holds_every_row_once_within_its_budget(lengths, budget, size, together):
    ids = [i // size for i in range(len(lengths))]
    b = collate([segment(n) for n in lengths], group=ids, trajectory=ids)
    parts = [p.tolist() for p in b.split(budget, together)]
    assert sorted(r for p in parts for r in p) == list(range(len(lengths)))
    for p in parts:
        units = {r if together == "row" else ids[r] for r in p}
        assert sum(lengths[r] for r in p) <= budget or len(units) == 1
        if together != "row":
            assert all((ids[r] in units) == (r in p) for r in range(len(lengths)))
    assert max(lengths[r] for r in parts[0]) == max(lengths)  # longest first


def test_without_a_budget_nothing_is_cut():
    assert [p.tolist() for p in batch().split(None)] == [[0, 1, 2, 3]]


def test_select_cuts_padding_and_takes_everything_along():
    b = weigh(batch(), Average("token")).with_(advantage=torch.ones(4, 7), label=torch.arange(4.0))
    part = b.select(torch.tensor([2, 0]))
    assert part.tokens.shape == part.mask.shape == part.weights["token"].shape == part.advantage.shape == (2, 4)
    assert part.label.tolist() == [2, 0] and part.group.tolist() == [2, 0]
    assert torch.equal(part.weights["token"], b.weights["token"][[2, 0], :4])


@pytest.mark.parametrize("kind", ["token", "sequence", "prompt", "sum"])
def test_weights_of_the_pieces_are_those_of_the_whole(kind):
    b = weigh(batch(group=[0, 0, 1, 1]), Average(kind))
    whole = (b.weights["token"] * b.tokens).sum()
    pieces = [b.select(rows) for rows in b.split(8)]
    assert len(pieces) > 2
    torch.testing.assert_close(sum((p.weights["token"] * p.tokens).sum() for p in pieces), whole)


def test_weights_have_names_and_stand_side_by_side():
    b = weigh_rows(weigh(batch(group=[0, 0, 1, 1]), Average("token")), Average("pair"), "pair")
    assert set(b.weights) == {"token", "pair"}
    assert b.weights["pair"].tolist() == [0.5] * 4  # two pairs
    torch.testing.assert_close(b.weights["token"].sum(), torch.tensor(1.0))


# --- minibatches --------------------------------------------------------------------------------------------------


def test_minibatches_part_the_groups_and_keep_them_whole():
    b = batch((3, 4, 5, 6, 3, 4), group=[0, 0, 1, 1, 2, 2])
    parts = list(b.minibatches(3, seed=1))
    assert sorted(int(p.group[0]) for p in parts) == [0, 1, 2]
    assert all(len(p) == 2 and len(p.group.unique()) == 1 for p in parts)
    again = list(b.minibatches(3, seed=1))
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(parts, again, strict=True))
    orders = {tuple(int(p.group[0]) for p in b.minibatches(3, seed=s)) for s in range(20)}
    assert len(orders) > 1


def test_one_minibatch_is_the_batch_itself():
    b = batch()
    assert next(b.minibatches(1, seed=0)) is b


def test_more_minibatches_than_groups_are_refused():
    with pytest.raises(DataError, match="3 minibatches were asked of a step with 2 groups; use at most 2"):
        list(batch(group=[0, 0, 1, 1]).minibatches(3, seed=0))


# --- answers of fixed length --------------------------------------------------------------------------------------


def test_what_follows_the_first_stop_token_becomes_padding():
    tokens = torch.tensor([[5, 3, 7, 3], [3, 1, 1, 1], [1, 2, 4, 3], [1, 2, 4, 6]])
    cut, place = cut_at_stop(tokens, [3], pad_id=0)
    assert cut.tolist() == [[5, 3, 0, 0], [3, 0, 0, 0], [1, 2, 4, 3], [1, 2, 4, 6]]
    assert place.tolist() == [1, 0, 3, 4] and cut.dtype == tokens.dtype
    cut, place = cut_at_stop(tokens, [7, 2], pad_id=9)
    assert cut.tolist() == [[5, 3, 7, 9], [3, 1, 1, 1], [1, 2, 9, 9], [1, 2, 9, 9]] and place.tolist() == [2, 4, 1, 1]
