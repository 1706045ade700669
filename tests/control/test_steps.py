"""Collection is a pure function of seeds and places; rows are episodes, cut where the batch is; an episode resumes."""

import pytest
import torch

from control import small  # noqa: F401 - skips where Gymnasium is missing
from posttrain.control.policies import Policy
from posttrain.control.spaces import Spaces
from posttrain.control.steps import Envs, StepBatch, collect
from posttrain.errors import ConfigError, RolloutError
from posttrain.objectives.average import Average
from posttrain.objectives.returns import gae


def policy(envs: Envs, seed: int = 0) -> Policy:
    return Policy(envs.spaces, (8,), seed)


def same(a: StepBatch, b: StepBatch) -> bool:
    names = ("obs", "action", "reward", "mask", "last_obs", "ended", "sampled_logp")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_an_open_episode_goes_on_after_its_environment_was_made_anew(name):
    one = Envs(name, 3, seed=5)
    model = policy(one)
    collect(one, model, 1, 17)
    other = Envs(name, 3, seed=5)
    other.load_state(one.state())
    a, done = collect(one, model, 2, 40)
    b, also = collect(other, model, 2, 40)
    assert same(a, b) and done == also and one.state() == other.state()


def test_rows_are_the_steps_of_one_episode_in_order():
    envs = Envs("CartPole-v1", 2, seed=0)
    batch, done = collect(envs, policy(envs), 3, 60)
    assert int(batch.mask.sum()) == 120 and len(batch) > 2
    assert int(batch.ended.sum()) == len(done)  # CartPole's random episodes all fall
    lengths = batch.mask.sum(1)
    for row, n in enumerate(lengths.tolist()):
        assert batch.mask[row].tolist() == [True] * n + [False] * (batch.mask.shape[1] - n)
        assert not torch.equal(batch.last_obs[row], batch.obs[row, n - 1])
    assert {e.length for e in done} <= set(lengths.tolist())
    assert all(e.reward == e.length for e in done)  # it pays 1 per step


def test_whole_episodes_are_fresh_and_one_per_environment():
    envs = Envs("CartPole-v1", 3, seed=0)
    model = policy(envs)
    first, done = collect(envs, model, 1)
    again, _ = collect(envs, model, 1)
    assert len(first) == len(done) == 3 and bool(first.ended.all())
    assert not torch.equal(first.obs[:, 0], again.obs[:, 0])
    assert first.mask.sum(1).tolist() == [e.length for e in sorted(done, key=lambda e: e.length)] or len(done) == 3


def test_a_row_that_was_cut_off_goes_on_with_the_critics_guess():
    envs = Envs("Pendulum-v1", 1, seed=0)
    batch, _ = collect(envs, policy(envs), 0, 5)
    assert not bool(batch.ended.any())
    value = torch.zeros(1, 5)
    advantage, _ = gae(batch.reward, value, batch.mask, gamma=0.5, lam=1.0, last_value=torch.tensor([32.0]))
    expected = sum(0.5**t * float(batch.reward[0, t]) for t in range(5)) + 0.5**5 * 32
    assert float(advantage[0, 0]) == pytest.approx(expected, abs=1e-5)


def test_what_was_sampled_is_what_the_policy_says_of_it():
    for name in ("CartPole-v1", "Pendulum-v1"):
        envs = Envs(name, 3, seed=1)
        model = policy(envs)
        batch, _ = collect(envs, model, 4, 30)
        said = batch.forward(model, ("logp",))["logp"]
        assert torch.allclose(said[batch.mask], batch.sampled_logp[batch.mask], atol=1e-5)


def test_flat_rows_are_the_steps_and_weigh_alike():
    envs = Envs("CartPole-v1", 2, seed=0)
    batch, _ = collect(envs, policy(envs), 3, 60)
    flat = batch.flat().weigh(Average("token"))
    assert flat.mask.shape == (120, 1) and bool(flat.mask.all())
    assert torch.equal(flat.obs[:, 0], batch.obs[batch.mask])
    assert torch.allclose(flat.weights["token"], torch.full((120, 1), 1 / 120))
    parts = list(flat.minibatches(7, seed=2))
    assert sum(map(len, parts)) == 120 and max(map(len, parts)) - min(map(len, parts)) <= 1
    seen = torch.cat([p.obs[:, 0] for p in parts])
    assert torch.equal(seen.sort(0).values, flat.obs[:, 0].sort(0).values)


def test_a_policys_unit_is_the_environments_bound():
    spaces = Envs("Pendulum-v1", 1, seed=0).spaces
    assert spaces.outward([1.0]).tolist() == [2.0] and spaces.outward([-5.0]).tolist() == [-2.0]
    assert spaces.scaled([1.0, 0.0, 4.0]).tolist() == [1.0, 0.0, 0.5]


def test_an_environment_that_does_not_fit_is_refused_with_its_reason():
    with pytest.raises(ConfigError, match='env = "CartPoll-v1": Gymnasium cannot make it'):
        Envs("CartPoll-v1", 1, seed=0)

    class Odd:
        observation_space = action_space = "a graph"
        spec = None

    with pytest.raises(ConfigError, match="it shows a graph.*it takes a graph.*no limit"):
        Spaces.of("odd", Odd())


def test_an_environment_that_breaks_is_named(monkeypatch):
    envs = Envs("CartPole-v1", 1, seed=0)
    monkeypatch.setattr(envs.envs[0].unwrapped, "step", lambda action: 1 / 0)
    with pytest.raises(RolloutError, match="CartPole-v1 failed at step 1 of episode 0 .*ZeroDivisionError"):
        envs.step(0, 1)
