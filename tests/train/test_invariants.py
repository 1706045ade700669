"""Each check fires on the fault that it is for, stays quiet otherwise, and says what to do."""

import pytest
import torch
from torch import nn

from posttrain.records import Group, Score, Segment, Stop, Task, Trajectory
from posttrain.train.invariants import (
    PATIENCE,
    block_movement,
    block_of,
    check_finite,
    check_movement,
    check_sampler_gap,
    check_signal,
    check_stop_ids,
    check_trainable,
    check_weights_changed,
    check_weights_synced,
    fingerprint,
    reward_signal,
)

END = 9


def segment(text: str, **more) -> Segment:
    """ "..xX" -> masked in where x; X is a stop token that is masked in, S one that is not."""
    tokens = tuple(END if c in "XS" else 1 for c in text)
    return Segment(tokens, tuple(c in "xX" for c in text), **more)


def group(rewards, stop=Stop.END) -> Group:
    task = Task("t", ())
    scores = [None if r == "error" else Score(r) for r in rewards]
    one = Segment((1, 2, 3), (False, True, True))
    return Group(task, tuple(Trajectory(task, (), (one,), stop, score=s) for s in scores))


def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Embedding(3, 2), "layers": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})


def weights(m):
    return {name: p.detach().clone() for name, p in m.named_parameters()}


@pytest.mark.parametrize("texts", [["..xxX"], ["..xX..xxX"], ["..xX.", "..X"]])
def test_learned_turns_that_end_with_a_stop_id(texts):
    check = check_stop_ids([segment(t) for t in texts], [END, 5])
    assert check.ok and "0 cut off" in check.value


@pytest.mark.parametrize("text", ["..xxS", "..xxx", "..xX..xx.", ".x.X"])
def test_a_turn_without_its_stop_id_is_found(text):
    check = check_stop_ids([segment("..X"), segment(text)], [END])
    assert not check.ok and "first: row 1" in check.value and "data show" in check.advice


def test_turns_that_touch_are_told_apart_by_their_number():
    check = check_stop_ids([segment("xxX", turn=(0, 1, 1))], [END])
    assert not check.ok and "1 of 2" in check.value


def test_a_turn_cut_by_truncation_is_counted_apart():
    check = check_stop_ids([segment("..X"), segment("..xx", truncated=3)], [END])
    assert check.ok and "(1 cut off by truncation)" in check.value


def test_nothing_to_learn_is_fatal():
    check = check_stop_ids([segment("....")], [END])
    assert not check.ok and check.fatal


def test_the_optimizer_must_hold_what_is_trained():
    m = model()
    assert check_trainable(m.named_parameters(), torch.optim.SGD(m.parameters(), lr=1)).ok
    check = check_trainable(m.named_parameters(), torch.optim.SGD(m["layers"].parameters(), lr=1))
    assert not check.ok and check.fatal and "lacks 1, first embed.weight" in check.value
    optimizer = torch.optim.SGD(m.parameters(), lr=1)
    m.requires_grad_(False)
    assert not check_trainable(m.named_parameters(), optimizer).ok


def test_a_fingerprint_sees_one_bit():
    m = model()
    before = fingerprint(m.named_parameters())
    assert set(before) == {"embed", "layers.0", "layers.1"}
    assert fingerprint(reversed(list(m.named_parameters()))) == before
    with torch.no_grad():
        m["layers"][1].bias[0] = torch.nextafter(m["layers"][1].bias[0], torch.tensor(9.0))
    after = fingerprint(m.named_parameters())
    assert [block for block in after if after[block] != before[block]] == ["layers.1"]


def test_a_fingerprint_sees_swapped_values_and_any_dtype():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    first, second = fingerprint([("x", a)])["x"], fingerprint([("x", b)])["x"]
    assert first[0] == second[0] == 3.0 and first[1] != second[1]
    assert fingerprint([("x", a.bfloat16())])["x"][0] == 3.0


def test_weights_that_did_not_change_or_arrive():
    m = model()
    old = fingerprint(m.named_parameters())
    same = check_weights_changed(old, old)
    assert not same.ok and same.fatal and "learning rate" in same.advice
    with torch.no_grad():
        m["embed"].weight += 1
    new = fingerprint(m.named_parameters())
    assert check_weights_changed(old, new).ok and check_weights_synced(new, new).ok
    stale = check_weights_synced(new, old)
    assert not stale.ok and stale.fatal and "1 of 3 blocks differ, first embed" in stale.value


def test_movement_is_relative_and_per_block():
    m = model()
    before = weights(m)
    with torch.no_grad():
        m["embed"].weight *= 1.5
    moved = block_movement(before, weights(m))
    assert moved == {"embed": pytest.approx(0.5, rel=1e-6), "layers.0": 0.0, "layers.1": 0.0}
    check = check_movement(moved)
    assert not check.ok and not check.fatal and "Unmoved: layers.0, layers.1" in check.advice


@pytest.mark.parametrize(
    "name, block",
    [
        ("model.layers.12.mlp.up_proj.weight", "layers.12"),
        ("embed_tokens.weight", "embed_tokens"),
        ("model.norm.weight", "norm"),
        ("transformer.h.3.attn.weight", "layers.3"),
    ],
)
def test_blocks(name, block):
    assert block_of(name) == block


def test_sampler_gap():
    assert check_sampler_gap(1e-6, 1e-4).ok
    mild = check_sampler_gap(1e-3, 1e-2)
    assert not mild.ok and not mild.fatal
    assert check_sampler_gap(0.5, 3.0).fatal and check_sampler_gap(float("nan"), 0.0).fatal
    assert check_sampler_gap(0.01, 1.0, limit=0.02).ok


def test_finite():
    assert check_finite("loss", 1.0).ok and not check_finite("loss", float("inf")).ok


def test_what_rewards_can_teach():
    signal = reward_signal([group([1.0, 0.0]), group([1.0, 1.0]), group([0.0, "error"]), group(["error", "error"])])
    assert signal.zero_variance == 0.5 and signal.abstained == 3 / 8 and not signal.silent and signal.length == 2
    assert reward_signal([group([1.0, 1.0])]).silent
    nothing = reward_signal([])
    assert nothing.silent and nothing.abstained == 0.0


def test_five_silent_batches_stop_the_run_and_name_the_cause():
    silent = reward_signal([group([0.0, 0.0], stop=Stop.LENGTH)])
    count = 0
    for batch in range(PATIENCE):
        (check, _), count = check_signal(silent, count)
        assert not check.ok and check.fatal == (batch == PATIENCE - 1)
    assert "cut off" in check.advice and "max_tokens" in check.advice
    (check, _), count = check_signal(reward_signal([group([0.0, 1.0])]), count)
    assert check.ok and count == 0


def test_solved_tasks_are_no_missing_signal():
    """Equal rewards above every mean seen so far: all is right. Equal rewards below: the policy has collapsed."""
    perfect, zero = reward_signal([group([1.0, 1.0])]), reward_signal([group([0.0, 0.0])])
    count = 0
    for _ in range(2 * PATIENCE):
        (check, _), count = check_signal(perfect, count, best=0.9)
        assert check.ok and not check.fatal and count == 0
    for signal, best in ((zero, 0.9), (perfect, None)):
        count = 0
        for _ in range(PATIENCE):
            (check, _), count = check_signal(signal, count, best=best)
        assert check.fatal


def test_a_broken_grader_stops_the_run():
    signal = reward_signal([group([0.0, 1.0] * 9 + ["error"])])  # 1 of 19: above 5%
    (_, check), _ = check_signal(signal)
    assert not check.ok and check.fatal and "5.3%" in check.value
    (_, check), _ = check_signal(signal, abstain_limit=0.1)
    assert check.ok
