"""The numbers of the book's widgets against the library's functions, on random inputs: the page's own code, in V8.

Modules are loaded by taking their `export` words away, which works for files that import nothing.
"""

import functools
import random
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("py_mini_racer", reason="the page's code runs in mini-racer, which posttrain[book] brings")

from posttrain import rng  # noqa: E402
from posttrain.objectives import kl as library_kl  # noqa: E402
from posttrain.objectives.policy import policy_loss  # noqa: E402
from posttrain.objectives.preference import cdpo, dpo  # noqa: E402
from posttrain.objectives.presets import PRESETS  # noqa: E402
from posttrain.objectives.regularizers import proximal_penalty  # noqa: E402
from posttrain.objectives.returns import gae  # noqa: E402
from posttrain.objectives.reward import bradley_terry  # noqa: E402
from posttrain.objectives.surrogate import Clip, clipped_gain, clipped_tokens, importance  # noqa: E402

WIDGETS = Path(__file__).parents[2] / "book/widgets"
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
double = functools.partial(torch.tensor, dtype=torch.float64)


@functools.cache
def module(name: str):
    """An engine with the functions of a module that imports nothing."""
    from py_mini_racer import MiniRacer

    engine = MiniRacer()
    engine.eval(re.sub(r"^export ", "", (WIDGETS / f"{name}.js").read_text(), flags=re.M))
    return engine


def js(name: str, *arguments, of: str = "num"):
    """What a function of the page gives."""
    return module(of).call(name, *arguments)


def close(page, library):
    torch.testing.assert_close(double(page), torch.as_tensor(library, dtype=torch.float64), **TOLERANCE)


def numbers(seed: int, n: int, scale: float = 1.0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, scale) for _ in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_distributions(seed):
    x, y = numbers(seed, 9, 3.0), numbers(seed + 100, 9, 3.0)
    p, q = js("softmax", x), js("softmax", y)
    close(js("logSoftmax", x), torch.log_softmax(double(x), 0))
    close(js("softmax", x, 0.3), torch.softmax(double(x) / 0.3, 0))
    close(js("logsumexp", x), torch.logsumexp(double(x), 0))
    close(js("kl", p, q), library_kl.reverse_kl(double(x), double(y)))
    close(js("entropy", p), torch.distributions.Categorical(logits=double(x)).entropy())
    close(js("crossEntropy", p, q), -(double(p) * double(q).log()).sum())
    close(js("tilted", x, y, 0.4), library_kl.tilted(double(x), double(y), 0.4))


@pytest.mark.parametrize("mean, width", [(12.0, 1.5), (20.3, 7.0), (47.0, 20.0)])
@pytest.mark.parametrize("way", ["reverse", "forward"])
def test_a_peak_and_the_slope_of_its_kl(mean, width, way):
    ref_logits = double(numbers(3, 48, 2.0))
    ref = torch.softmax(ref_logits, 0).tolist()
    at = double([mean, width]).requires_grad_()
    logits = -(((torch.arange(1, 49) - at[0]) / at[1]) ** 2) / 2
    close(js("peak", 48, mean, width), torch.softmax(logits, 0).detach())
    kl = getattr(library_kl, f"{way}_kl")(logits, ref_logits)
    pol = js("peak", 48, mean, width)
    close(js("kl", *((pol, ref) if way == "reverse" else (ref, pol))), kl.detach())
    (slope,) = torch.autograd.grad(kl, at)
    close(js("peakGradient", ref, mean, width, way), slope * double([1.0, width]))


@pytest.mark.parametrize("beta", [5.0, 0.4, 0.01])
def test_the_tilt_of_samples(beta):
    reward, count = numbers(17, 300, 2.0), [1 + i % 4 for i in range(300)]
    for given in ([count], []):
        want = library_kl.tilted_samples(double(reward), beta, *map(double, given))
        got = js("tiltedSamples", reward, beta, *given)
        close(got["weight"], want.weight)
        for name in ("reward", "kl", "effective"):
            close(got[name], getattr(want, name))


def test_edges_of_distributions():
    assert js("entropy", [1, 0]) == 0 and js("kl", [1, 0], [0.5, 0.5]) == pytest.approx(0.6931471805599453)
    close(js("softmax", [1000, 0]), [1.0, 0.0])
    for x in (-800.0, -1e-9, 0.0, 37.0, 800.0):
        close(js("logsigmoid", x), torch.nn.functional.logsigmoid(double(x)))
        close(js("sigmoid", x), torch.sigmoid(double(x)))


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_of_kl(name):
    for r in numbers(7, 50, 2.0):
        close(js(name, r), library_kl.kl_estimate(double(r), name))


@pytest.mark.parametrize("seed", range(3))
def test_moments_of_the_estimators(seed):
    """Under the policy k1 and k3 have the KL as their mean, to the last digit, and k2 has not."""
    x, y = double(numbers(50 + seed, 8, 2.0)), double(numbers(60 + seed, 8, 2.0))
    p, ratio = x.softmax(0), x.log_softmax(0) - y.log_softmax(0)
    for name in ("k1", "k2", "k3"):
        value = library_kl.kl_estimate(ratio, name)
        found = js("moments", p.tolist(), value.tolist())
        close(found["mean"], (p * value).sum())
        close(found["std"], ((p * value.square()).sum() - (p * value).sum().square()).sqrt())
        assert (abs(found["mean"] - float(library_kl.reverse_kl(x, y))) < 1e-9) == (name != "k2")


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("low, high", [(0.2, 0.2), (0.2, 0.28), (1.0, 0.5)])
def test_the_clip(low, high, cap):
    clip = Clip(low=low, high=high, cap=cap)
    log_ratio, advantage = double(numbers(1, 400, 0.8))[None].requires_grad_(), double(numbers(2, 400))[None]
    gain = clipped_gain(log_ratio, log_ratio, advantage, torch.ones(1, 400, dtype=torch.bool), clip)
    (slope,) = torch.autograd.grad(gain.sum(), log_ratio)
    acted = clipped_tokens(log_ratio.detach(), advantage, clip)
    rho, page_clip = log_ratio.detach().exp()[0].tolist(), {"low": low, "high": high, "cap": cap}
    found = [js("clippedGain", r, a, page_clip) for r, a in zip(rho, advantage[0].tolist(), strict=True)]
    close([f["gain"] for f in found], gain[0])
    close([f["slope"] * r for f, r in zip(found, rho, strict=True)], slope[0])
    where = [js("clippedAt", r, a, page_clip) for r, a in zip(rho, advantage[0].tolist(), strict=True)]
    for name, there in acted._asdict().items():
        assert [w == name for w in where] == there[0].tolist()
    assert sum(map(bool, where)) > 20
    share = torch.stack(acted).any(0).double().mean()
    close(js("clipFraction", rho, advantage[0].tolist(), page_clip), share)


def test_ppo_as_the_loss_counts_it():
    logp, advantage = double(numbers(3, 64, 0.4))[None], double(numbers(4, 64))[None]
    mask = torch.ones(1, 64, dtype=torch.bool)
    _, metrics = policy_loss(logp, torch.zeros_like(logp), advantage, mask, PRESETS["ppo"])
    total = float(metrics["clip_share"][0])
    close(js("clipFraction", logp.exp()[0].tolist(), advantage[0].tolist(), {"low": 0.2, "high": 0.2}), total / 64)


def test_the_penalty():
    log_ratio, advantage = double(numbers(5, 50, 0.7))[None].requires_grad_(), double(numbers(6, 50))[None]
    mask = torch.ones(1, 50, dtype=torch.bool)
    gain = log_ratio.exp() * advantage - 0.7 * proximal_penalty(log_ratio, mask, "k3", "token")
    (slope,) = torch.autograd.grad(gain.sum(), log_ratio)
    rho = log_ratio.detach().exp()[0].tolist()
    found = [js("penalisedGain", r, a, 0.7) for r, a in zip(rho, advantage[0].tolist(), strict=True)]
    close([f["gain"] for f in found], gain[0])
    close([f["slope"] * r for f, r in zip(found, rho, strict=True)], slope[0])


def test_the_ratio_of_a_whole_answer():
    log_ratio, mask = double(numbers(14, 7))[None], torch.ones(1, 7, dtype=torch.bool)
    want = importance(log_ratio, torch.zeros_like(log_ratio), mask, "sequence")[0, 0]
    close(js("answerLogRatio", log_ratio[0].tolist()), want)


def test_weights_that_follow_a_kl():
    for kl in (0.001, 0.006, 0.01, 0.014, 0.016, 3.0):
        close(js("doublingBeta", 1.5, kl, 0.01), library_kl.doubling_beta(1.5, kl, target=0.01))
        settings = {"target": 0.01, "samples": 64, "horizon": 1000}
        close(js("adaptiveBeta", 0.15, kl, settings), library_kl.adaptive_beta(0.15, kl, **settings))


def test_gae():
    rewards, values = numbers(8, 12), numbers(9, 12)
    mask = torch.ones(1, 12, dtype=torch.bool)
    want = gae(double(rewards)[None], double(values)[None], mask, gamma=0.9, lam=0.7, last_value=double([0.3]))
    got = js("gae", rewards, values, {"gamma": 0.9, "lam": 0.7, "last": 0.3})
    close(got["advantages"], want[0][0])
    close(got["targets"], want[1][0])


def test_preferences():
    for a, b in zip(numbers(10, 20, 4.0), numbers(11, 20, 4.0), strict=True):
        score = double([a]).requires_grad_()
        loss, _ = bradley_terry(score, double([b]))
        (slope,) = torch.autograd.grad(loss.sum(), score)
        close(js("bradleyTerry", a, b)["loss"], loss[0].detach())
        close(js("bradleyTerry", a, b)["slope"], slope[0])


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("flips", [0.0, 0.2])
def test_dpo(beta, flips):
    draws = [numbers(30 + i, 40, 8.0) for i in range(4)]
    answers = [double(x).requires_grad_() for x in draws]
    loss, metrics = cdpo(*answers, beta=beta, label_smoothing=flips) if flips else dpo(*answers, beta=beta)
    slopes = torch.autograd.grad(loss.sum(), answers[:2])
    found = [js("dpo", *pair, beta, flips) for pair in zip(*draws, strict=True)]
    close([f["loss"] for f in found], loss.detach())
    for name, key in (("margin", "margin"), ("rewardChosen", "reward_chosen"), ("rewardRejected", "reward_rejected")):
        close([f[name] for f in found], metrics[key])
    for slope, sign in zip(slopes, (-1, 1), strict=True):
        close([sign * beta * f["weight"] for f in found], slope)


def test_a_policy_gives_back_its_reward_up_to_log_z():
    """The cards of section 16: r = β (log π / π_ref + log Z), whatever log Z, has this policy as its optimum."""
    policy, reference = (js("logSoftmax", numbers(seed, 6, 2.0)) for seed in (40, 41))
    for log_z in (-30.0, 0.0, 12.0):
        reward = [0.3 * (a - b + log_z) for a, b in zip(policy, reference, strict=True)]
        close(js("tilted", reference, reward, 0.3), policy)


def test_draws_are_the_library_s():
    seeds = [0, 1, 12345, 2**31, 2**52 + 12345]
    for seed in seeds:
        want = rng.uniform(torch.full((50,), seed), torch.arange(50)).tolist()
        assert [js("uniform", seed, i) for i in range(50)] == want


def test_statistics_and_draws():
    x = numbers(12, 9)
    close(js("std", x), double(x).std(correction=0))
    close(js("std", x, 1), double(x).std())
    close(js("mean", x), double(x).mean())
    assert [js("pick", [0.2, 0.3, 0.5], u) for u in (0, 0.19, 0.21, 0.49, 0.51, 0.999)] == [0, 0, 1, 1, 2, 2]
    drawn = module("num").eval(
        "(() => { const next = random(3); return Array.from({length: 4000}, () => normal(next)) })()"
    )
    assert abs(sum(drawn) / 4000) < 4 / 4000**0.5 and abs(sum(v * v for v in drawn) / 4000 - 1) < 4 * (2 / 4000) ** 0.5


def test_adam():
    x = double(numbers(13, 5)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    page, state = x.tolist(), "{m: [0,0,0,0,0], v: [0,0,0,0,0], t: 0}"
    engine = module("num")
    engine.eval(f"globalThis.state = {state}")
    for step in range(4):
        gradient = numbers(20 + step, 5)
        x.grad = double(gradient)
        optimizer.step()
        page = list(engine.eval(f"adam({page}, {gradient}, state, {{lr: 0.05}})"))
        close(page, x.detach())
