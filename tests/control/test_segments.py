"""Comparisons: who answers, what is asked, how the ensemble takes it, and that the true return rises."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from algorithms import toy

from control import small
from posttrain.control import predictor, segments
from posttrain.control.clips import HEIGHT, WIDTH, beside, draw
from posttrain.control.labellers import Clip, Noted, Synthetic, Terminal, labeller
from posttrain.control.learning import Task
from posttrain.control.ppo import Update
from posttrain.control.predictor import Comparisons, Ensemble, Predictor
from posttrain.control.steps import Envs, collect
from posttrain.errors import ConfigError, Interrupted, RunError, UsageError
from posttrain.train.learner import Learner
from posttrain.train.run import Run


def clip(reward: float, place: float = 0.0) -> Clip:
    return Clip(torch.full((4, 3), place), torch.zeros(4, 1), torch.full((4,), reward))


def test_the_synthetic_labeller_errs_at_its_rate():
    said = [Synthetic(0.1, seed=3)(i, clip(1.0), clip(0.0)) for i in range(3000)]
    assert abs(sum(said) / 3000 - 0.9) < 4 * math.sqrt(0.09 / 3000)
    assert said == [Synthetic(0.1, seed=3)(i, clip(1.0), clip(0.0)) for i in range(3000)]
    assert Synthetic(0.0, seed=0)(0, clip(0.0), clip(1.0)) == 0.0
    assert Synthetic(0.0, seed=0)(0, clip(1.0), clip(1.0)) == 0.5
    assert Synthetic(0.0, seed=0, tie=5.0)(0, clip(1.0), clip(0.0)) == 0.5


@pytest.mark.parametrize(
    ("typed", "answer"), [(["l"], 1.0), (["r"], 0.0), (["t"], 0.5), (["c"], None), (["?", "", "p", "Left"], 1.0)]
)
def test_a_person_is_shown_both_clips_and_answers(typed, answer):
    shown, lines = [], iter(typed)
    terminal = Terminal("Pendulum-v1", ask=lambda text: next(lines), write=shown.append, seconds=0)
    assert terminal(4, clip(0.0, 1.0), clip(0.0, -1.0)) == answer
    text = "".join(shown)
    assert "Comparison 5: which clip is better?" in text and "LEFT  1/4" in text and "RIGHT  4/4" in text
    assert text.count("LEFT  1/4") == (2 if "p" in typed else 1)


@pytest.mark.parametrize("typed", ["q", EOFError()])
def test_a_person_may_stop(typed):
    def ask(text):
        if isinstance(typed, str):
            return typed
        raise typed

    with pytest.raises(Interrupted, match="comparison 1"):
        Terminal("Pendulum-v1", ask=ask, write=lambda text: None, seconds=0)(0, clip(0.0), clip(0.0))


def test_answers_are_kept_at_once_and_not_asked_again(tmp_path):
    asked = []

    def person(number, first, second):
        asked.append(number)
        return None if number else 1.0

    path = tmp_path / "answers.jsonl"
    noted = Noted(person, path)
    assert [noted(0, clip(0.0), clip(1.0)), noted(1, clip(0.0), clip(1.0))] == [1.0, None]
    again = Noted(person, path)
    assert [again(0, clip(0.0), clip(1.0)), again(1, clip(0.0), clip(1.0))] == [1.0, None] and asked == [0, 1]
    with pytest.raises(RunError, match="comparison 0 .* other clips"):
        again(0, clip(0.0, 9.0), clip(1.0))
    path.write_text("what\n")
    with pytest.raises(RunError, match="no answer"):
        Noted(person, path)


def test_without_a_terminal_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    said = pytest.raises(UsageError, match="no terminal to type in")
    with Run.open(tmp_path / "run", small.config("segments")) as run, said:
        labeller("terminal", "Pendulum-v1", run, errors=0.0)


def test_a_labeller_who_can_tell_nothing_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "labeller", lambda *a, **k: lambda number, first, second: None)
    with pytest.raises(RunError, match="none of the first 6 comparisons could be told"):
        small.run("segments", small.config("segments"), tmp_path)


def test_nothing_else_is_drawn_while_a_person_is_asked():
    drawn = ["bar"]

    @contextlib.contextmanager
    def aside():
        drawn.clear()
        yield
        drawn.append("bar")

    def ask(text):
        assert not drawn
        return "l"

    assert Terminal("Pendulum-v1", ask=ask, write=lambda t: None, seconds=0, aside=aside)(0, clip(0.0), clip(0.0)) == 1
    assert drawn == ["bar"]


def test_frames_show_where_things_are():
    upright, hanging = draw("Pendulum-v1", [1.0, 0.0, 0.5], [0.5]), draw("Pendulum-v1", [-1.0, 0.0, 0.0])
    assert "o" in upright[0] and "o" not in upright[-2] and "o" in hanging[-2] and "torque +1.0" in upright[-1]
    left, right = draw("CartPole-v1", [-2.4, 0, 0, 0], 0), draw("CartPole-v1", [2.4, 0, 0.2, 0], 1)
    assert left[-2].startswith("###") and right[-2].endswith("###") and "push -->" in right[-1]
    bars = draw("Acrobot-v1", [0.5, -0.5], None)
    assert "|=====" in bars[0] and "=====|" in bars[1]
    for frame in (upright, left, bars):
        assert len(frame) == HEIGHT + 1 and {len(line) for line in frame} == {WIDTH}
    assert all(len(line) == 2 * WIDTH + 3 for line in beside(left, right, ("LEFT", "RIGHT")).splitlines())


def test_comparisons_are_asked_for_at_a_falling_rate_up_to_the_budget():
    cfg = segments.Config(comparisons=300, steps=40)
    counts = [segments.asked_by(cfg, s) for s in range(40)]
    assert counts[0] == 75 and counts[-1] == 300
    steps = [b - a for a, b in zip(counts[:-1], counts[1:], strict=True)]
    assert min(steps) > 0 and sum(steps[:10]) > 1.5 * sum(steps[-10:])


def rollout():
    envs = Envs("Pendulum-v1", 3, seed=0)
    return envs, collect(envs, segments_policy(envs), 0, 30)[0]


def segments_policy(envs):
    from posttrain.control.policies import Policy

    return Policy(envs.spaces, (4,), 0)


def test_clips_lie_within_one_row_and_anywhere_in_it():
    _, batch = rollout()
    batch = batch.with_(mask=batch.mask & (torch.arange(30) < torch.tensor([[30], [12], [5]])))
    found = segments.windows(batch, 10, 2000, seed=1)
    assert {r for r, _ in found} == {0, 1}
    assert {t for r, t in found if r == 0} == set(range(21)) and {t for r, t in found if r == 1} == {0, 1, 2}
    share = sum(r == 1 for r, _ in found) / 2000
    assert abs(share - 3 / 24) < 4 * math.sqrt(3 / 24 * 21 / 24 / 2000)


def test_the_pairs_asked_about_are_those_the_members_differ_on():
    envs, batch = rollout()
    cfg = replace(small.config("segments"), segment=10, candidates=10)
    model = Ensemble(4, cfg.predictor, 0)
    spaces = envs.spaces

    def unsure(pairs):
        first, second = (segments.clips(batch, [p[i] for p in pairs], 10, spaces) for i in (0, 1))
        return torch.sigmoid((model(first) - model(second)).sum(2)).var(0, correction=0)

    chosen = segments.choose(batch, 4, model, cfg, spaces, seed=2)
    anywhere = segments.choose(batch, 40, model, replace(cfg, queries="random"), spaces, seed=2)
    assert len(chosen) == 4 and len(anywhere) == 40
    assert float(unsure(chosen).min()) >= float(unsure(anywhere).sort().values[-5])
    assert segments.choose(batch, 0, model, cfg, spaces, seed=2) == []


def test_what_cannot_be_told_is_dropped_and_a_tie_is_not():
    envs, batch = rollout()
    cfg = replace(small.config("segments"), segment=10)
    pairs = [((0, t), (1, t)) for t in range(4)]
    said = [1.0, None, 0.5, 0.0]
    found = segments.answered(batch, pairs, lambda n, a, b: said[n - 7], 7, cfg, envs.spaces, seed=0)
    assert found.label.tolist() == [1.0, 0.5, 0.0]
    assert torch.equal(found.first[1], segments.clips(batch, [(0, 2)], 10, envs.spaces)[0])


def test_bootstrap_draws_have_mean_one_and_leave_out_one_in_e():
    draws = predictor.poisson(20_000, 2, 0, seed=1)
    assert abs(float(draws.mean()) - 1) < 0.03 and abs(float((draws == 0).float().mean()) - 1 / math.e) < 0.01
    assert torch.equal(predictor.poisson(5, 2, 7, seed=1), draws[7:12])


def hidden_reward(n: int, seed: int) -> Comparisons:
    """Clips of 5 steps of 2 numbers, of which the first is the reward."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, 5, 2, generator=generator) for _ in range(2))
    label = (first[..., 0].sum(1) > second[..., 0].sum(1)).float()
    return Comparisons(first, second, label, predictor.poisson(n, 3, 0, seed))


def test_the_ensemble_finds_a_hidden_reward_and_every_member_is_brought_to_one_scale():
    cfg = Predictor(hidden=(16,), batch=64, decay=1e-4)
    model = Ensemble(2, cfg, 0)
    data = hidden_reward(200, 1)
    found, decay = predictor.fit(Learner(model, cfg.optim, 300), data, cfg, 300, cfg.decay, 5)
    assert float(found["predictor_loss"][0]) / float(found["predictor_loss"][1]) < 0.6
    assert float(found["eval_predictor_accuracy"][0]) > 0.8 and decay != cfg.decay
    x = torch.randn(400, 1, 2)
    out = model(x)[:, :, 0]
    for member in out:
        assert float(torch.corrcoef(torch.stack([member, x[:, 0, 0]]))[0, 1]) > 0.9


def test_learned_rewards_have_mean_zero_and_deviation_one_over_the_labelled_steps():
    envs, batch = rollout()
    cfg = Predictor(hidden=(8,))
    model = Ensemble(4, cfg, 0)
    with torch.no_grad():
        model.weights[-1][1] *= 100  # one member on another scale
    seen = segments.features(batch.obs, batch.action, envs.spaces)
    data = Comparisons(seen, seen.flip(0), torch.ones(3), torch.ones(3, 3))
    mean, spread = predictor.reward(model, batch, data, envs.spaces)
    assert abs(float(mean.mean())) < 1e-4 and 0.2 < float(mean.std()) <= 1.01 and bool((spread >= 0).all())
    model.weights[-1].data[:] = model.weights[-1][:1]
    for i in range(len(model.weights)):
        model.weights[i].data[:] = model.weights[i][:1]
        model.biases[i].data[:] = model.biases[i][:1]
    alike, none = predictor.reward(model, batch, data, envs.spaces)
    assert float(alike.std()) == pytest.approx(1, abs=1e-2) and float(none.max()) < 1e-4


def test_the_decay_follows_the_gap_to_held_out_comparisons(monkeypatch):
    cfg = Predictor()
    for new, expected in ((2.0, 1.5e-4), (1.2, 1e-4), (1.0, 1e-4 / 1.5)):
        monkeypatch.setattr(predictor, "losses", lambda *a, new=new: (torch.tensor(1.0), torch.tensor(new), None))
        assert predictor.next_decay(None, None, cfg, 1e-4) == pytest.approx(expected)


def test_what_makes_no_sense_is_refused_together():
    with pytest.raises(ConfigError, match="errors = 0.9.*\n.*needs predictor.members of 2.*\n.*is longer than"):
        segments.Config(errors=0.9, predictor=Predictor(members=1), segment=999)
    with pytest.raises(ConfigError, match='labeller = "ask" is not one of synthetic, terminal'):
        segments.Config(labeller="ask")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_return_rises_though_nobody_wrote_it_down(tmp_path, seed):
    cfg = segments.Config(
        task=Task(env="Pendulum-v1", envs=8, horizon=200), update=Update(gamma=0.9, epochs=10, minibatches=4),
        comparisons=200, steps=40, run=toy.quiet(seed),
    )  # fmt: skip
    found = small.run("segments", cfg, tmp_path)
    assert found[0]["episode_return"] < -900 and found[-1]["episode_return"] > -700
    assert found[-1]["reward_correlation"] > 0.8
