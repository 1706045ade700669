"""Every control loop raises its return, resumes bit for bit, logs what is known, and says no where it must."""

from dataclasses import replace

import pytest
import torch
from algorithms import toy
from algorithms.test_resume import assert_equal

from control import small
from posttrain.cli import train as verb
from posttrain.control import ppo, reinforce, trpo
from posttrain.control.learning import Task
from posttrain.control.steps import Envs, collect
from posttrain.errors import ConfigError, Interrupted, UsageError
from posttrain.objectives.regularizers import Entropy, Kl
from posttrain.train.learner import Optim
from posttrain.train.run import Run, read_result


@pytest.mark.parametrize("name", small.MODULES)
def test_interrupted_and_resumed_is_as_unbroken(tmp_path, name):
    cfg = small.config(name, seed=3, save_every=1)
    small.run(name, cfg, tmp_path / "whole")
    with pytest.raises(Interrupted), Run.open(tmp_path / "broken", cfg) as run:
        log = run.log

        def stop(step, metrics):
            if step == 1:
                run._stop._reason = "interrupted"
            return log(step, metrics)

        run.log = stop
        small.MODULES[name].train(cfg, run)
    assert len(toy.lines(tmp_path / "broken" / "metrics.jsonl")) == 2
    small.run(name, cfg, tmp_path / "broken")
    for file in ("metrics.jsonl", "invariants.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()
    a, b = (read_result(tmp_path / n).checkpoint for n in ("whole", "broken"))
    files = [p.relative_to(a) for p in a.rglob("*.pt")]
    assert len(files) >= 3
    for file in files:
        assert_equal(torch.load(a / file), torch.load(b / file))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_to_balance(tmp_path, seed):
    task = Task(envs=8, horizon=128, hidden=(32,))
    update = ppo.Update(epochs=6, minibatches=2, optim=Optim(lr=4e-3, beta2=0.999, max_grad_norm=0.5))
    found = small.run("ppo", ppo.Config(task=task, update=update, steps=10, run=toy.quiet(seed)), tmp_path)
    assert found[0]["episode_return"] < 40 < 80 < found[-1]["episode_return"]


@pytest.mark.parametrize("seed", [0, 1])
def test_trpo_learns_to_balance_within_its_bound(tmp_path, seed):
    task = Task(envs=8, horizon=128, hidden=(32,))
    cfg = trpo.Config(task=task, steps=10, delta=0.02, critic_updates=10, run=toy.quiet(seed))
    found = small.run("trpo", cfg, tmp_path)
    assert found[0]["episode_return"] < 40 < 80 < found[-1]["episode_return"]
    assert all(0 < m["kl_trust"] <= 0.02 for m in found)


def test_reinforce_learns_to_balance(tmp_path):
    cfg = reinforce.Config(episodes=8, steps=20, hidden=(32,), critic_updates=5, run=toy.quiet(0))
    found = small.run("reinforce", cfg, tmp_path)
    assert found[0]["episode_return"] < 40 < 60 < found[-1]["episode_return"]


def test_whatever_the_baseline_the_expected_gradient_is_one(tmp_path):
    """The three estimates differ by what a baseline takes away, which must be noise: within four standard errors."""
    base = reinforce.Config(episodes=16, gamma=1.0, reward_scale=1.0)
    envs = Envs("CartPole-v1", 16, seed=0)
    model = reinforce.Policy(envs.spaces, (4,), 0)
    critic = small.trpo.make_actor("CartPole-v1", 1, (4,), 7).critic
    kinds = {"none": "to_go", "running": "total", "value": "to_go"}
    grads = {kind: [] for kind in kinds}
    for k in range(60):
        batch, _ = collect(envs, model, k)
        for kind, credit in kinds.items():
            cfg = replace(base, baseline=kind, credit=credit)
            credited = reinforce.credited(batch, critic, cfg, running=15.0)
            grads[kind].append(reinforce.gradient(model, credited, cfg))
    found = {kind: torch.stack(g) for kind, g in grads.items()}
    for kind in ("running", "value"):
        gap = found[kind] - found["none"]
        z = gap.mean(0) / (gap.std(0) / len(gap) ** 0.5).clamp(min=1e-12)
        assert float(z.abs().max()) < 4.5, kind
    assert float(found["running"].var(0).sum()) < 3 * float(found["none"].var(0).sum())


def test_credit_is_the_return_less_the_baseline():
    envs = Envs("CartPole-v1", 2, seed=0)
    batch, _ = collect(envs, reinforce.Policy(envs.spaces, (4,), 0), 0)
    cfg = reinforce.Config(baseline="running", gamma=1.0)
    n = batch.mask.sum(1).tolist()
    found = reinforce.credited(batch, None, cfg, running=2.0).advantage
    assert found[0, : n[0]].tolist() == [n[0] - t - 2.0 for t in range(n[0])]
    total = reinforce.credited(batch, None, replace(cfg, credit="total"), running=2.0).advantage
    assert total[0, : n[0]].tolist() == [n[0] - 2.0] * n[0] and total[0, n[0] :].abs().sum() == 0


def test_the_natural_gradient_without_its_search_can_leave_the_region(tmp_path):
    cfg = replace(small.config("trpo"), line_search=False, delta=0.5, damping=1e-3)
    assert max(m["kl_trust"] for m in small.run("trpo", cfg, tmp_path)) > 0.5


def test_trpos_gain_and_kl_are_those_of_the_policy():
    envs = Envs("CartPole-v1", 2, seed=0)
    model = trpo.Policy(envs.spaces, (4,), 0)
    batch, _ = collect(envs, model, 1, 20)
    batch = batch.with_(advantage=torch.randn(batch.mask.shape)).flat().weigh(trpo.Average("token"))
    surrogate, kl = trpo.objectives(model, batch)
    theta = trpo.flat(model)
    assert float(kl(theta)) == pytest.approx(0, abs=1e-7)
    assert float(surrogate(theta)[0]) == pytest.approx(float(batch.advantage.mean()), abs=1e-6)
    other = trpo.Policy(envs.spaces, (4,), 1)
    new, old = other(batch.obs[:, 0]), model(batch.obs[:, 0])
    at = trpo.flat(other)
    assert float(kl(at).detach()) == pytest.approx(float(old.kl(new).mean()), abs=1e-6)
    ratio = (new.logp(batch.action[:, 0]) - old.logp(batch.action[:, 0])).exp()
    assert float(surrogate(at)[0]) == pytest.approx(float((ratio * batch.advantage[:, 0]).mean()), abs=1e-5)


def test_the_penalty_is_steered_and_passes_stop_early(tmp_path):
    penalty = replace(small.config("ppo"), update=ppo.Update(objective=ppo.FORMS["ppo_penalty"]))
    small.run("ppo", penalty, tmp_path / "penalty")
    state = (read_result(tmp_path / "penalty").checkpoint / "state.json").read_text()
    assert '"tie": 1.0' not in state
    early = replace(small.config("ppo"), update=ppo.Update(epochs=6, stop_kl=1e-9))
    assert small.run("ppo", early, tmp_path / "early")[-1]["minibatch_steps"] == 4


def test_what_makes_no_sense_is_refused_together(tmp_path):
    with pytest.raises(ConfigError, match="epochs = 0.*\n.*there is no reference"):
        ppo.Update(epochs=0, objective=replace(ppo.FORMS["ppo"], kl=Kl(where="reward", estimator="k1", beta=0.1)))
    with pytest.raises(ConfigError, match="cannot exceed the batch's 6 steps"):
        ppo.Config(task=Task(envs=2, horizon=3), update=ppo.Update(minibatches=7))
    with pytest.raises(ConfigError, match="envs = 0.*\n.*reward_scale"):
        Task(envs=0, reward_scale=-1.0)
    with pytest.raises(ConfigError, match="delta = 0.*\n.*shrink = 1"):
        trpo.Config(delta=0.0, shrink=1.0)
    with pytest.raises(ConfigError, match='credit = "total" with baseline = "value"'):
        reinforce.Config(credit="total")
    with pytest.raises(ConfigError, match="entropy.target"):
        reinforce.Config(entropy=Entropy(weight=0.1, target=0.2))
    with pytest.raises(ConfigError, match="ended early"):
        cfg = replace(small.config("segments"), task=replace(small.CART, horizon=100))
        small.run("segments", cfg, tmp_path)


def test_the_command_line_knows_them(capsys):
    for name in verb.CONTROL:
        verb.main([name, "--dry-run"])
        assert "Folder: runs/" in capsys.readouterr().out
        assert verb.method(name)[1].__name__.startswith("posttrain.control.")
    from posttrain.cli import plan

    with pytest.raises(UsageError, match="--dry-run says what a run would do"):
        plan.main(["trpo"])


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("posttrain.dist.world", lambda: 2)
    with pytest.raises(ConfigError, match="torchrun started 2"):
        small.trpo.make_actor("CartPole-v1", 1, (4,), 0)
