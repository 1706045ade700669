"""Online preference learning raises the reward of what the policy writes, whoever plays and whoever judges."""

from dataclasses import replace

import pytest
import torch

from algorithms import toy
from algorithms.killed import any_split_learns_the_same, ends_in_the_same_bits
from posttrain.algorithms import online_preference
from posttrain.algorithms.contests import WAYS, Way, contests, match_batch, win_rate
from posttrain.algorithms.plan import demand, rows_of
from posttrain.data.rows import Data
from posttrain.errors import ConfigError
from posttrain.models.load import load
from posttrain.models.lora import Lora
from posttrain.objectives.preference import PreferenceLoss, mixture_logits
from posttrain.records import Group, Message, Score, Segment, Stop, Task, Trajectory
from posttrain.rewards.judge import LanguageJudge
from posttrain.sample.base import SamplingParams
from posttrain.sample.mixture import MixtureSampler
from posttrain.sample.torch import TorchSampler
from posttrain.train.demand import moments
from posttrain.train.learner import Optim
from posttrain.train.run import RunConfig

REWARD = "def share(task, trajectory):\n    return trajectory.completion.split().count('b') / 4\n"


def config(folder, seed: int = 0, way: str = "online_dpo", **changes) -> online_preference.Config:
    (folder / "reward.py").write_text(REWARD)
    base = {
        "model": toy.model(folder / "model", seed),
        "template": "posttrain",
        "data": Data(path=toy.rows(folder / "tasks.jsonl", [{"prompt": w} for w in toy.WORDS])),
        "reward": f"{folder / 'reward.py'}:share",
        "way": WAYS[way],
        "loss": PreferenceLoss(beta=0.1),
        "prompts": 16,
        "group_size": 8,
        "steps": 25,
        "eval_every": 0,
        "sampling": SamplingParams(max_tokens=4),
        "optim": Optim(lr=5e-3),
        "run": toy.quiet(seed),
    }
    return online_preference.Config(**(base | changes))


def reward(way: str, seed: int, folder) -> float:
    """Mean reward of the last five rollouts."""
    _, metrics = toy.run(online_preference, config(folder, seed, way), folder / "run")
    return sum(m["reward_mean"] for m in metrics[-5:]) / 5


# A random model writes "b" about once in 24 words: reward 0.04. An opponent's answers, which are no better, are half of
# what XPO and Nash-MD score.
LEAST = {"online_dpo": 0.3, "iterative_dpo": 0.3, "nash_md": 0.1, "xpo": 0.15}


@pytest.mark.parametrize("way", LEAST)
def test_the_reward_rises(tmp_path, way):
    assert reward(way, 0, tmp_path) > LEAST[way]


def member(text: str, value: float | None, stop: Stop = Stop.END) -> Trajectory:
    task = Task("t", (Message("user", "a"),))
    segment = Segment(tuple(range(1, 4)), (False, True, True), logp=(float("nan"), -1.0, -2.0))
    return Trajectory(task, (*task.prompt, Message("assistant", text)), (segment,), stop, score=Score(value))


def group(*values: float | None) -> Group:
    members = tuple(member(str(i), v) for i, v in enumerate(values))
    return Group(members[0].task, members)


def said(matches) -> list[tuple[str, str, float]]:
    return [(m.mine.completion, m.other.completion, m.gap) for m in matches]


def test_the_best_meets_the_worst_and_opponents_meet_in_order():
    groups = [group(0.0, 3.0, None, 1.0), group(1.0, 1.0, 1.0, 1.0), group(None, None, None, None)]
    assert said(contests(groups, Way())) == [("1", "0", 3.0)]
    assert said(contests(groups, WAYS["xpo"])) == [("1", "3", 2.0)]
    assert said(contests(groups, WAYS["nash_md"])) == [("1", "3", 2.0), ("0", "2", 0.0), ("1", "3", 0.0)]
    assert contests([group(None, None)], Way()) == []


def test_rows_know_who_won_and_who_wrote_them():
    matches = contests([group(0.0, 3.0), group(2.0, 1.0)], WAYS["xpo"])
    batch = match_batch(matches, WAYS["xpo"], 0)
    assert batch.label.tolist() == [1, -1, 1, -1] and batch.weights["rival"].tolist() == [1, 0, 0, 1]
    assert batch.margin.tolist() == [3, 3, 1, 1]
    wins = match_batch(contests([group(0.0, 3.0), group(2.0, 2.0)], WAYS["nash_md"]), WAYS["nash_md"], 0)
    assert wins.margin.tolist() == [-0.5, 0.0]
    assert win_rate(1.0, 2.0) == pytest.approx(0.880797, abs=1e-6)


def test_the_reference_becomes_the_policy_after_each_round(tmp_path):
    """At the start of every round the loss is log 2 and nothing has moved; without renewal the distance grows."""
    cfg = config(tmp_path, way="iterative_dpo", steps=4, minibatches=4)
    _, rounds = toy.run(online_preference, cfg, tmp_path / "rounds")
    assert all(abs(m["kl_ref_answer"]) < 1e-4 for m in rounds)
    _, fixed = toy.run(online_preference, replace(cfg, way=Way()), tmp_path / "fixed")
    assert fixed[-1]["kl_ref_answer"] > 0.05


def test_optimism_pushes_the_reference_down(tmp_path):
    way = replace(WAYS["xpo"], optimism=0.05)
    _, plain = toy.run(online_preference, config(tmp_path, steps=1, way="xpo"), tmp_path / "plain")
    _, bold = toy.run(online_preference, replace(config(tmp_path, steps=1), way=way), tmp_path / "bold")
    assert bold[0]["loss"] < plain[0]["loss"]  # its second term is α times a log-probability


@pytest.mark.parametrize("way", ["iterative_dpo", "nash_md"])
def test_a_killed_run_ends_in_the_same_bits(tmp_path, monkeypatch, way):
    run = RunConfig(threads=1, save_every=2, samples=1)
    cfg = config(tmp_path, way=way, steps=5, prompts=6, group_size=4, run=run)
    ends_in_the_same_bits(online_preference, cfg, tmp_path, monkeypatch, "step", 4)


def test_any_split_learns_the_same(tmp_path):
    def cut(micro):
        return config(tmp_path, way="xpo", steps=2, prompts=6, group_size=4, optim=Optim(lr=1e-3, micro_tokens=micro))

    any_split_learns_the_same(online_preference, cut, tmp_path)


def test_adapters_have_the_bare_base_as_reference(tmp_path):
    for way in ("online_dpo", "iterative_dpo", "xpo", "nash_md"):
        cfg = config(tmp_path, way=way, steps=2, prompts=4, lora=Lora(rank=2), optim=Optim(lr=1e-2))
        _, metrics = toy.run(online_preference, cfg, tmp_path / way)
        assert metrics[0]["kl_ref_answer"] == pytest.approx(0, abs=1e-4), way


def test_a_plan_counts_both_caches_of_a_mixture(tmp_path):
    def cache(way):
        cfg = config(tmp_path, way=way, steps=2, prompts=4)
        return moments(demand(cfg, rows_of(cfg)))[0].parts["cache"]

    assert cache("nash_md") == 2 * cache("online_dpo")


def test_the_mixture_samples_from_the_geometric_mean(tmp_path):
    """With share 0 and 1 it is one of both, draw by draw; in between its log-probabilities are the mixture's."""
    a, b = (load(toy.model(tmp_path / f"m{seed}", seed)).model for seed in (0, 1))
    prompts, seeds = [[3, 9], [3, 9], [3, 10, 11]], [5, 6, 7]
    params = SamplingParams(max_tokens=6, stop_ids=(6,))
    for share, alone in ((0.0, a), (1.0, b)):
        found = MixtureSampler(a, b, share=share).generate(prompts, params, seeds)
        wanted = TorchSampler(alone).generate(prompts, params, seeds)
        assert [c.tokens for c in found] == [c.tokens for c in wanted]
    (said,) = MixtureSampler(a, b, share=0.3, slots=1).generate(prompts[2:], params, seeds[2:])
    row = torch.tensor([prompts[2] + list(said.tokens)])
    with torch.no_grad():
        logp = mixture_logits(a.logits(a(row))[0], b.logits(b(row))[0], share=0.3)
    at = [float(logp[2 + t, token]) for t, token in enumerate(said.tokens)]
    assert said.logp == pytest.approx(at, abs=1e-5)


def test_the_policy_marks_its_own_answers():
    """The embedded base's marks are the expectation over five marks, and depend on the answer."""
    loaded = load("base", template="posttrain")
    judge = LanguageJudge(loaded.model, loaded.template, loaded.tokenizer)
    answers = tuple(member(text, None) for text in ("Mira lives in Orlen.", "x", ""))
    found = [s.value for s in judge(Group(answers[0].task, answers))]
    ids = judge.question(answers[0])
    with torch.no_grad():
        odds = loaded.model.logits(loaded.model(torch.tensor([ids])))[0, -1].softmax(-1)[judge.marks]
    mean = float((odds * torch.arange(1, 6)).sum() / odds.sum())
    assert found[0] == pytest.approx((mean - 1) / 2 - 1, abs=1e-5)
    assert len(set(found)) == 3 and all(-1 <= v <= 1 for v in found)


def test_self_rewarding_runs_on_the_embedded_base(tmp_path):
    cfg = config(tmp_path, way="self_rewarding", model="base", reward="auto", steps=2, prompts=2, group_size=2)
    _, metrics = toy.run(online_preference, cfg, tmp_path / "run")
    assert -1 <= metrics[0]["reward_mean"] <= 1 and metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_settings_that_mean_nothing(tmp_path):
    for changes, words in (
        ({"group_size": 1}, "a comparison takes two"),
        ({"way": "nash_md", "group_size": 3}, "opponents write half of them"),
        ({"way": "nash_md", "epochs": 2}, "nothing corrects it"),
        ({"way": "self_rewarding"}, "changes nothing with way.judge"),
        ({"minibatches": 17}, "cannot exceed prompts = 16"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(tmp_path, **changes)
    with pytest.raises(ConfigError, match='set opponent = "reference"'):
        Way(optimism=0.1)
    with pytest.raises(ConfigError, match="needs an opponent"):
        Way(learn="win_rate")


if __name__ == "__main__":
    toy.record(**{way: lambda s, f, w=way: reward(w, s, f) for way in LEAST})
