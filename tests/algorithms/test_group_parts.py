"""What the group loop makes of its samples: every preset's inputs, dynamic sampling, form, epochs, samples that lag."""

from dataclasses import replace

import pytest
import torch

from algorithms import toy
from algorithms.test_group import config
from posttrain.algorithms import group
from posttrain.algorithms.dynamic_sampling import draw
from posttrain.algorithms.policy_step import kinds
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.objectives.objective import Objective
from posttrain.objectives.presets import PRESETS
from posttrain.records import Group, Message, Score, Segment, Stop, Task, Trajectory
from posttrain.rewards.form import Form, shaped
from posttrain.sample.base import SamplingParams
from posttrain.sample.behind import BehindSampler, rounded
from posttrain.sample.torch import TorchSampler
from posttrain.train.learner import Learner, Optim

FILE = """
from posttrain.records import Score

def parts(task, trajectory):
    words = trajectory.completion.split()
    right, brief = float("b" in words), float(len(words) < 7)
    return Score(right + 0.2 * brief, parts={"right": right, "brief": brief})

def right(task, trajectory):
    return float("b" in trajectory.completion.split())

def early(task, trajectory):
    return float(len(trajectory.completion) % 2 and task.prompt[0].content < "e")
"""


def of_file(folder, function: str, preset: str = "grpo", **changes) -> group.Config:
    cfg = config(folder, preset=preset, **{"steps": 3, **changes})
    (folder / "more.py").write_text(FILE)
    return replace(cfg, reward=f"{folder / 'more.py'}:{function}")


@pytest.mark.parametrize("preset", [name for name, o in PRESETS.items() if not o.needs_critic])
def test_every_preset_runs(tmp_path, preset):
    """Its advantages get their inputs, whatever these are, and the weights move."""
    updates = 2 if PRESETS[preset].corrects_stale else 1
    function = "right" if "pass_at_k" in PRESETS[preset].advantage else "parts"
    _, metrics = toy.run(group, of_file(tmp_path, function, preset, minibatches=updates), tmp_path / "run")
    assert len(metrics) == 3 and all(m["advantage_abs"] > 0 and m["grad_norm"] > 0 for m in metrics)


def test_presets_with_a_critic_are_sent_to_its_loop(tmp_path):
    with pytest.raises(ConfigError, match="posttrain train ppo"):
        of_file(tmp_path, "right", "ppo")


# --- inputs --------------------------------------------------------------------------------------------------------


def answer(
    value: float | None, length: int = 2, stop: Stop = Stop.END, task: Task | None = None, **parts
) -> Trajectory:
    task = task or Task("t", (Message("user", "?"),))
    s = Segment((1,) * (length + 1), (False,) + (True,) * length, (0.0,) * (length + 1))
    score = Score(value, parts) if value is not None else Score(None, why="?")
    return Trajectory(task, task.prompt, (s,), stop, 0, score=score)


def test_remax_subtracts_the_reward_of_the_greedy_answer(tmp_path, monkeypatch):
    seen = []
    real = group.learning_batch

    def watched(groups, *args, greedy, **kwargs):
        batch, state = real(groups, *args, greedy=greedy, **kwargs)
        seen.append((groups, greedy(groups), batch, kwargs["rewards"]))
        return batch, state

    monkeypatch.setattr(group, "learning_batch", watched)
    cfg = of_file(tmp_path, "parts", "remax", steps=1)
    toy.run(group, replace(cfg, objective=replace(cfg.objective, kl=Objective().kl)), tmp_path / "run")
    ((groups, best, batch, _),) = seen
    assert [g.task.id for g in best] == [g.task.id for g in groups] and {len(g.members) for g in best} == {1}
    wanted = [m.score.value - b.members[0].score.value for g, b in zip(groups, best, strict=True) for m in g.members]
    found = [float(a[m][0]) for a, m in zip(batch.advantage, batch.mask, strict=True)]
    assert found == pytest.approx(wanted)


def test_kinds_of_rewards():
    rewards = {"a": (None, 1.0), "b": (None, 0.2), "shown": (None, 0.0)}
    groups = [Group(None, (answer(1.2, a=1.0, b=1.0, shown=3.0), answer(None), answer(0.0, a=0.0)))]
    table, weights = kinds(groups, rewards)
    assert weights.tolist() == pytest.approx([1.0, 0.2])
    assert table[0].tolist() == [1.0, 1.0] and table[1, 0] == 0 and table[1, 1].isnan() and len(table) == 2
    one = [Group(None, (answer(1.0, **{"own": 1.0, "own.x": 2.0, "own.y": 3.0}),))]
    table, weights = kinds(one, {"own": (None, 2.0)})
    assert table.tolist() == [[2.0, 3.0]] and weights.tolist() == [2.0, 2.0]
    with pytest.raises(ConfigError, match=r"there is one: own\. Name more"):
        kinds([Group(None, (answer(1.0, own=1.0),))], {"own": (None, 1.0)})


# --- dynamic sampling ----------------------------------------------------------------------------------------------


def mixed(prompts: int, draws: int, taught: set[str]):
    """What `draw` makes of prompts of which only some teach."""

    class Run:
        def seed(self, *stream):
            return hash(stream)

        def took(self, step, rows):
            return rows

    class Cfg:
        objective, group_size = PRESETS["dapo"], 2
        run = toy.quiet()

    cfg, calls, state = Cfg(), [], {"cursor": 5}
    cfg.prompts, cfg.draws = prompts, draws
    tasks = [Task(name, (Message("user", name),)) for name in "abcdefgh"]

    def answered(questions, n, params, seed):
        calls.append((len(questions), seed))
        return [Group(t, tuple(answer(float(i and t.id in taught), task=t) for i in range(n))) for t in questions]

    groups, kept = draw(cfg, Run(), 3, tasks, state, SamplingParams(), answered)
    return groups, kept, calls, state


def test_prompts_without_a_signal_are_replaced_until_the_batch_is_full():
    groups, kept, calls, state = mixed(4, 50, {"a", "c"})
    assert len(kept) == 4 and {g.task.id for g in kept} <= {"a", "c"}
    assert len(groups) == sum(n for n, _ in calls) == state["cursor"] - 5
    assert calls[0][0] == 4 and len({seed for _, seed in calls}) == len(calls)
    asked = 0
    for n, _ in calls:  # never more than are missing
        missing = 4 - sum(g.task.id in "ac" for g in groups[:asked])
        assert n == missing
        asked += n


def test_a_maximum_bounds_the_refill():
    groups, kept, calls, _ = mixed(4, 3, set())
    assert not kept and len(calls) == 3 and len(groups) == 12
    assert len(mixed(4, 1, {"a"})[2]) == 1


def test_refill_is_counted_and_fills_batches(tmp_path):
    lean = of_file(tmp_path, "early", "dapo", prompts=4, draws=1)
    full = replace(lean, draws=40)
    few, many = (toy.run(group, cfg, tmp_path / str(cfg.draws))[1] for cfg in (lean, full))
    assert all(m["prompts_drawn"] == 4 for m in few) and any(m["groups_kept_share"] < 1 for m in few)
    assert all(m["groups_kept_share"] * m["prompts_drawn"] == pytest.approx(4) for m in many)
    assert all(m["prompts_drawn"] > 4 for m in many)


# --- form ----------------------------------------------------------------------------------------------------------


def test_overlong_punishment_by_hand():
    groups = [Group(None, (answer(1.0, 6), answer(1.0, 9), answer(0.0, 10, Stop.LENGTH), answer(None, 10)))]
    ((first, second, third, none),) = (g.members for g in shaped(groups, Form(overlong=4), 10))
    assert [m.score.value for m in (first, second, third)] == [1.0, 0.25, -1.0] and none.score.value is None
    assert second.score.parts["form"] == -0.75
    assert shaped(groups, Form(truncated="dropped"), 10) == groups
    ((_, _, cut, _),) = (g.members for g in shaped(groups, Form(truncated_value=-0.5), 10))
    assert cut.score.value == -0.5
    ((same, *_),) = (g.members for g in shaped(groups, Form(repetition=0.5), 10))
    assert same.score.value == pytest.approx(1 - 0.5 * 3 / 4)  # four trigrams, one of them new


def test_a_group_is_mixed_by_what_answers_are_worth_and_not_by_their_length(tmp_path):
    """All right, of different lengths: the punishment alone is no reason to keep a group."""
    cfg = config(tmp_path, preset="dapo", reward="constant", steps=2, form=Form(overlong=8), draws=1)
    _, metrics = toy.run(group, cfg, tmp_path / "run")
    assert all(m["groups_kept_share"] == 0 and "loss" not in m for m in metrics)


def test_dropped_answers_teach_nothing_but_count_in_their_group(tmp_path, monkeypatch):
    seen = {}
    for how in ("graded", "dropped"):
        real = group.learning_batch

        def watched(*args, how=how, real=real, **kwargs):
            batch, state = real(*args, **kwargs)
            seen.setdefault(how, (args[0], batch))
            return batch, state

        monkeypatch.setattr(group, "learning_batch", watched)
        toy.run(group, of_file(tmp_path, "right", form=Form(truncated=how)), tmp_path / how)
        monkeypatch.undo()
    groups, whole = seen["graded"]
    _, part = seen["dropped"]
    ended = [m.stop is Stop.END for g in groups for m in g.members]
    assert 0 < sum(ended) < len(ended) and len(part) == sum(ended)
    rows = torch.tensor(ended).nonzero().flatten()
    t = part.tokens.shape[1]
    assert torch.equal(part.advantage, whole.advantage[rows][:, :t]) and torch.equal(part.mask, whole.mask[rows][:, :t])


# --- epochs, lag, rounding -----------------------------------------------------------------------------------------


def test_epochs_and_minibatches_multiply(tmp_path):
    cfg = config(tmp_path, steps=2, epochs=3, minibatches=2)
    result, metrics = toy.run(group, cfg, tmp_path / "run")
    assert cfg.updates == 6 and torch.load(result.checkpoint / "optimizer.pt")["version"] == 12
    assert metrics[0]["kl_old"] > 0 and metrics[0]["ratio_max"] > 1


def learner(folder) -> Learner:
    return Learner(load(toy.model(folder), template="posttrain").model, Optim(), 10)


def move(policy: Learner) -> None:
    policy.version += 1
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.01 * torch.randn(p.shape))


def test_a_sampler_that_lags_has_the_weights_of_that_many_updates_ago(tmp_path):
    policy = learner(tmp_path)
    sampler, states = BehindSampler(policy.model, lag=2), []
    for version in range(5):
        sampler.update(policy)
        sampler.update(policy)  # known already
        states.append({k: v.clone() for k, v in policy.model.state_dict().items()})
        assert sampler.version == max(0, version - 2)
        assert all(torch.equal(v, sampler.own.state_dict()[k]) for k, v in states[max(0, version - 2)].items())
        move(policy)
    again = BehindSampler(policy.model, lag=2)
    again.load_state(sampler.state())
    move(policy)
    for s in (sampler, again):
        s.update(policy)
    prompts, params = [[1, 9, 10]] * 4, SamplingParams(max_tokens=6)
    assert sampler.generate(prompts, params, range(4)) == again.generate(prompts, params, range(4))
    assert again.version == sampler.version == 3


def test_rounding_changes_matrices_of_layers_and_nothing_else(tmp_path):
    policy = learner(tmp_path)
    whole, four = (BehindSampler(policy.model, rounding=r) for r in ("none", "int4"))
    for s in (whole, four):
        s.update(policy)
    inner = "layers.0.mlp.up_proj.weight" if "layers.0.mlp.up_proj.weight" in policy.model.state_dict() else None
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, whole.own.state_dict()[name])
        rough = name.startswith("layers.") and weight.dim() == 2
        assert torch.equal(weight, four.own.state_dict()[name]) != rough
        inner = inner or (name if rough else None)
    row = four.own.state_dict()[inner][0]
    assert len(row.unique()) <= 15
    same, prompts = SamplingParams(max_tokens=6), [[1, 9, 10]] * 4
    assert whole.generate(prompts, same, range(4)) == TorchSampler(policy.model).generate(prompts, same, range(4))


def test_rounded_by_hand():
    found = rounded(torch.tensor([[1.0, -0.6, 0.1], [0.0, 0.0, 0.0]]), "int4")
    assert found[0].tolist() == pytest.approx([1, -4 / 7, 1 / 7]) and found[1].tolist() == [0, 0, 0]
    x = torch.randn(5, 7)
    assert (rounded(x, "int8") - x).abs().max() <= x.abs().amax(1).max() / 127 / 2 * 1.001
    assert torch.equal(rounded(x, "bfloat16"), x.bfloat16().float()) and rounded(x, "none") is x


@pytest.mark.parametrize("preset", ["tis", "mis", "icepop", "dppo"])
def test_stale_samples_show_as_a_gap_that_corrections_act_on(tmp_path, preset):
    cfg = of_file(tmp_path, "right", preset, lag=2, draws=1)
    _, metrics = toy.run(group, replace(cfg, steps=6), tmp_path / "run")
    assert [m["lag"] for m in metrics][:4] == [0, 1, 2, 2]
    gaps = [m["sampler_gap_mean"] for m in metrics if "sampler_gap_mean" in m]
    assert gaps[0] < 1e-5 and gaps[2] > 1e-3
    if preset != "dppo":
        assert any(m.get("mismatch_cut_share", 0) > 0 for m in metrics)


def test_a_rounded_sampler_is_said_to_be_one(tmp_path):
    cfg = of_file(tmp_path, "right", rounding="int4")
    _, metrics = toy.run(group, cfg, tmp_path / "run")
    assert all(m["sampler_gap_mean"] > 1e-3 and m["lag"] == 0 for m in metrics)
    assert "the samples are not the policy's" in (tmp_path / "run" / "log.txt").read_text()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("preset", ["dapo", "remax"])
def test_an_interrupted_run_with_refill_and_lag_equals_an_unbroken_one(tmp_path, monkeypatch, preset):
    cfg = of_file(tmp_path, "right", preset, lag=2, draws=3)
    if preset == "dapo":
        cfg = replace(cfg, epochs=2, minibatches=2)
    cfg = replace(cfg, steps=7, run=toy.quiet(save_every=3))
    whole, _ = toy.run(group, cfg, tmp_path / "whole")
    real = group.watch_signal

    def stops(run, step, *args, **kwargs):
        if step == 5:
            raise Stopped
        return real(run, step, *args, **kwargs)

    monkeypatch.setattr(group, "watch_signal", stops)
    with pytest.raises(Stopped):
        toy.run(group, cfg, tmp_path / "broken")
    monkeypatch.undo()
    broken, _ = toy.run(group, cfg, tmp_path / "broken")
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    weights = [(r.checkpoint / "model.safetensors").read_bytes() for r in (whole, broken)]
    assert weights[0] == weights[1]


def test_refusals(tmp_path):
    for preset, changes, text in (
        ("pass_at_k", {"group_size": 3}, "needs at least 4"),
        ("rloo", {"epochs": 2}, "epochs = 2, minibatches = 1 with ratio"),
        ("grpo", {"lag": -1}, "lag = -1"),
        ("grpo", {"reference_every": -1}, "reference_every = -1"),
        ("dapo", {"reference_every": 4}, "no reference that could move"),
        ("grpo", {"form": Form(overlong=9)}, "exceeds sampling.max_tokens = 8"),
        ("pass_at_k_training", {"form": Form(overlong=2)}, "counts right and wrong answers"),
        ("grpo", {"draws": 0}, "draws = 0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=text):
            config(tmp_path, preset=preset, **changes)
    with pytest.raises(ConfigError, match="reads the rewards by kind"):
        config(tmp_path, objective=replace(PRESETS["gdpo"], kl=PRESETS["rloo"].kl))
    with pytest.raises(ConfigError, match="overlong = -1"):
        Form(overlong=-1)
    with pytest.raises(ConfigError, match="a lag is 0 or more"):
        BehindSampler(None, lag=-1)


def test_a_silent_first_minibatch_is_passed_over(tmp_path):
    """Without a leash it has no gradient, and the first step must change the weights."""
    cfg = of_file(tmp_path, "early", "dr_grpo", prompts=4, minibatches=4, steps=2)
    result, metrics = toy.run(group, cfg, tmp_path / "run")
    assert 0 < metrics[0]["zero_variance_share"] < 1 and "loss" in metrics[0]
    assert torch.load(result.checkpoint / "optimizer.pt")["version"] < 8
