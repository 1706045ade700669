"""Laws and their fits: worked numbers of the cards, parameters given back, least squares against plain loops."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives.scaling import (
    Growth,
    Law,
    coverage,
    fit_best_of_n,
    fit_coverage,
    fit_rl,
    fit_scale_rl,
    gold_best_of_n,
    gold_rl,
    peak_best_of_n,
    peak_rl,
    scale_rl,
)

D = torch.tensor([0.3, 0.8, 1.5, 2.5, 4.0, 7.0], dtype=torch.float64)


def law(alpha, beta):
    return Law(torch.tensor(alpha, dtype=torch.float64), torch.tensor(beta, dtype=torch.float64))


def test_gold_curves_worked_numbers():
    assert gold_best_of_n(torch.tensor([0.0, 1, 2, 4]), law(1.0, 0.25)).tolist() == [0, 0.75, 1, 0]
    assert peak_best_of_n(law(1.0, 0.25)) == (2, 1)
    peak = peak_rl(law(0.5, 0.2))
    assert round(peak.distance.item(), 4) == 4.4817 and round(peak.gold.item(), 4) == 0.8963
    found = gold_rl(torch.tensor([0.0, 1.0, peak.distance.item(), math.exp(2.5)]), law(0.5, 0.2))
    assert found.tolist() == pytest.approx([0, 0.5, peak.gold.item(), 0], abs=1e-12)
    assert round(math.exp(2.5), 3) == 12.182
    for d in D.tolist():
        assert gold_rl(torch.tensor([d]), law(0.7, 0.3)).item() == pytest.approx(d * (0.7 - 0.3 * math.log(d)))


@pytest.mark.parametrize(("curve", "peak"), [(gold_best_of_n, peak_best_of_n), (gold_rl, peak_rl)])
def test_nothing_lies_above_a_peak(curve, peak):
    top = peak(law(0.8, 0.3))
    assert curve(top.distance[None], law(0.8, 0.3)).item() == pytest.approx(top.gold.item())
    for factor in (0.9, 1.1):
        assert curve(factor * top.distance[None], law(0.8, 0.3)).item() < top.gold.item()


@pytest.mark.parametrize(("curve", "fit"), [(gold_best_of_n, fit_best_of_n), (gold_rl, fit_rl)])
def test_fits_give_parameters_back_and_minimise(curve, fit):
    found = fit(D, curve(D, law(0.8, -0.1)))
    assert found.alpha.item() == pytest.approx(0.8) and found.beta.item() == pytest.approx(-0.1)
    noisy = curve(D, law(0.8, 0.2)) + 0.1 * torch.randn(6)
    found = fit(D, noisy)

    def error(alpha, beta):
        return (curve(D, law(alpha, beta)) - noisy).square().sum().item()

    least = error(found.alpha.item(), found.beta.item())
    for da, db in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert error(found.alpha.item() + da, found.beta.item() + db) > least
    single = fit(D.float(), noisy.float())
    assert single.alpha.dtype == torch.float32 and single.alpha.item() == pytest.approx(found.alpha.item(), abs=1e-4)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_the_unit_of_distance_does_not_matter(unit):
    found = fit_best_of_n(unit * D, gold_best_of_n(unit * D, law(0.8, 0.2)))
    assert found.alpha.item() == pytest.approx(0.8) and found.beta.item() == pytest.approx(0.2)


def test_the_start_of_a_run_does_not_break_the_fit():
    d = torch.cat([torch.zeros(2, dtype=torch.float64), D])
    found = fit_rl(d, gold_rl(d, law(0.8, 0.2)))
    assert found.alpha.item() == pytest.approx(0.8) and found.beta.item() == pytest.approx(0.2)


def test_coverage_and_its_fit():
    k = torch.tensor([1, 4, 16, 64])
    share = coverage(k, law(-1.5, -0.4))
    assert share.tolist() == pytest.approx([math.exp(-1.5 * n**-0.4) for n in (1, 4, 16, 64)])
    assert share[0].item() == pytest.approx(math.exp(-1.5))
    found = fit_coverage(k, share)
    assert found.alpha.item() == pytest.approx(-1.5) and found.beta.item() == pytest.approx(-0.4)


def test_scale_rl_and_its_fit():
    compute = torch.tensor([0.0, 100.0, 400, 1600, 6400], dtype=torch.float64)
    growth = Growth(*(torch.tensor(x, dtype=torch.float64) for x in (0.7, 1.3, 400.0)))
    reward = scale_rl(compute, growth, 0.1)
    expected = [0.1 + 0.6 / (1 + (400 / c) ** 1.3) for c in (100, 400, 1600, 6400)]
    assert reward.tolist() == pytest.approx([0.1, *expected]) and reward[2].item() == pytest.approx(0.4)
    ceilings = torch.tensor([0.1, 0.6, 0.69, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    found = fit_scale_rl(compute[1:], reward[1:], 0.1, ceilings)
    assert [x.item() for x in found] == pytest.approx([0.7, 1.3, 400.0])
    noisy = reward[1:] + torch.tensor([0.01, -0.01, 0.0, 0.005])
    best = fit_scale_rl(compute[1:], noisy, 0.1, ceilings)
    errors = []
    for a in (0.69, 0.7, 0.8, 0.9, 1.0):
        alone = fit_scale_rl(compute[1:], noisy, 0.1, torch.tensor([a], dtype=torch.float64))
        errors.append(((scale_rl(compute[1:], alone, 0.1) - noisy).square().sum().item(), a))
    assert best.ceiling.item() == pytest.approx(min(errors)[1])


def test_refusals():
    for peak in (peak_best_of_n, peak_rl):
        with pytest.raises(ConfigError, match="never falls"):
            peak(law(1.0, 0.0))
    for fit in (fit_best_of_n, fit_rl):
        for place in (0.7, 1234.567, 1e-3):
            with pytest.raises(DataError, match="two different"):
                fit(torch.full((3,), place), torch.randn(3))
        with pytest.raises(ShapeError):
            fit(D, torch.zeros(2))
    for share in (0.0, 1.0):
        with pytest.raises(DataError, match="strictly between"):
            fit_coverage(torch.tensor([1, 2]), torch.tensor([0.5, share]))
    rising, ceilings = torch.tensor([0.2, 0.3]), torch.tensor([0.5])
    with pytest.raises(DataError, match="exceed the start"):
        fit_scale_rl(torch.tensor([1.0, 2]), rising, 0.2, ceilings)
    with pytest.raises(DataError, match="one ceiling"):
        fit_scale_rl(torch.tensor([1.0, 2]), rising, 0.1, torch.tensor([0.3]))
    with pytest.raises(DataError, match="does not rise"):
        fit_scale_rl(torch.tensor([1.0, 2]), rising.flip(0), 0.1, ceilings)
