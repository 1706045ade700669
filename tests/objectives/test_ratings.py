"""Ratings: closed forms for two models, the equations of the maximum, the second derivative, and known numbers."""

import math

import pytest
import torch

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives.ratings import (
    POINTS,
    bradley_terry_ratings,
    elo_points,
    elo_update,
    length_controlled_win_rate,
    win_probability,
)

WINS = torch.tensor([[0.0, 7, 2.5, 9], [3, 0, 4, 6], [5.5, 4, 0, 8], [1, 2, 3, 0]], dtype=torch.float64)


def log_likelihood(wins, score):
    m = len(wins)
    return sum(wins[i, j] * -math.log(1 + math.exp(score[j] - score[i])) for i in range(m) for j in range(m) if i != j)


def test_elo_numbers():
    assert round(100 / POINTS, 6) == 0.575646
    assert round(win_probability(torch.tensor(100 / POINTS)).item(), 6) == 0.640065
    assert elo_points(torch.tensor([0.0, math.log(10)])).tolist() == pytest.approx([1000, 1400])
    assert elo_points(torch.tensor(1.0), base=0.0).item() == pytest.approx(400 / math.log(10))


def test_two_models_in_closed_form():
    found = bradley_terry_ratings(torch.tensor([[9.0, 3], [1, 9]]))
    assert found.score.tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    c = found.covariance
    assert (c[0, 0] + c[1, 1] - 2 * c[0, 1]).item() == pytest.approx(4 / 3)
    assert found.stderr.tolist() == pytest.approx([math.sqrt(1 / 3)] * 2)


def test_the_maximum_predicts_as_many_wins_as_there_were():
    found = bradley_terry_ratings(WINS)
    score = found.score.tolist()
    assert sum(score) == pytest.approx(0, abs=1e-12)
    for i in range(4):
        games = [(WINS[i, j] + WINS[j, i]).item() for j in range(4)]
        expected = sum(
            n / (1 + math.exp(s - score[i])) for n, s, j in zip(games, score, range(4), strict=True) if j != i
        )
        assert WINS[i].sum().item() == pytest.approx(expected)
    best = log_likelihood(WINS, score)
    for i in range(4):
        for step in (0.01, -0.01):
            moved = [s + step * (j == i) for j, s in enumerate(score)]
            assert log_likelihood(WINS, moved) < best


def test_covariance_inverts_the_second_derivative():
    found = bradley_terry_ratings(WINS)
    off = 1 - torch.eye(4)

    def minus(score):
        return -(WINS * off * torch.nn.functional.logsigmoid(score[:, None] - score[None, :])).sum()

    hessian = torch.autograd.functional.hessian(minus, found.score)
    ones = torch.full((4, 4), 0.25)
    torch.testing.assert_close(found.covariance @ hessian, torch.eye(4) - ones)  # a projection: Σ s = 0
    torch.testing.assert_close(found.covariance.sum(0), torch.zeros(4), atol=1e-12, rtol=0)


def test_more_games_shrink_the_interval_and_names_do_not_matter():
    found, more = bradley_terry_ratings(WINS), bradley_terry_ratings(4 * WINS)
    torch.testing.assert_close(more.score, found.score)
    torch.testing.assert_close(more.stderr, found.stderr / 2)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(bradley_terry_ratings(WINS[order][:, order]).score, found.score[order])
    junk = WINS + torch.diag(torch.full((4,), math.nan))
    torch.testing.assert_close(bradley_terry_ratings(junk).score, found.score)


def test_the_truth_is_found_from_exact_expectations():
    truth = torch.tensor([3.0, 0.5, -0.5, -3.0])
    p = torch.sigmoid(truth[:, None] - truth[None, :])
    torch.testing.assert_close(bradley_terry_ratings(100 * p).score, truth)


def test_a_prior_keeps_an_unbeaten_model_finite():
    wins = torch.tensor([[0.0, 5], [0, 0]])
    with pytest.raises(DataError, match="no chain of wins leads from model 1 to model 0"):
        bradley_terry_ratings(wins)
    found = bradley_terry_ratings(wins, prior=0.5)
    assert (found.score[0] - found.score[1]).item() == pytest.approx(math.log(5.5 / 0.5))
    apart = torch.zeros(4, 4)
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 1  # two camps that never met
    with pytest.raises(DataError, match="no chain"):
        bradley_terry_ratings(apart)
    ring = torch.zeros(5, 5)
    for i in range(5):
        ring[i, (i + 1) % 5] = 1
    torch.testing.assert_close(bradley_terry_ratings(ring).score, torch.zeros(5), atol=1e-9, rtol=0)


def test_extreme_tables_converge():
    lopsided = torch.tensor([[0.0, 1e6, 1e6], [1, 0, 1e6], [1, 1, 0]])
    found = bradley_terry_ratings(lopsided)
    p = torch.sigmoid(found.score[:, None] - found.score[None, :])
    games = lopsided + lopsided.T
    torch.testing.assert_close((games * p).sum(1) - games.diagonal() / 2, lopsided.sum(1), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    "wins",
    [
        [[0, 100, 10, 10, 100], [1e3, 0, 1, 1e6, 1], [1e6, 1e3, 0, 10, 100], [1e5, 1, 0, 0, 1], [1e5, 1e6, 0, 1e4, 0]],
        [
            [0, 0, 0, 1e3, 0],
            [1e3, 0, 100, 1e4, 100],
            [1e6, 10, 0, 0, 100],
            [1e5, 0, 1e6, 0, 100],
            [1e6, 1e5, 1e3, 100, 0],
        ],
    ],
)
def test_tables_on_which_longer_steps_run_away(wins):
    """Upsets in a circle: at first the quadratic model points far beyond the maximum."""
    wins = torch.tensor(wins)
    score = bradley_terry_ratings(wins).score
    p = torch.sigmoid(score[:, None] - score[None, :])
    torch.testing.assert_close((wins * p.T).sum(1), (wins.T * p).sum(1), rtol=1e-9, atol=0)


def test_elo_update():
    equal = torch.tensor([1000.0, 1000, 1200])
    assert elo_update(equal, 0, 1, 1.0).tolist() == [1016, 984, 1200]
    assert equal.tolist() == [1000, 1000, 1200]
    assert elo_update(equal, 0, 1, 0.5).tolist() == [1000, 1000, 1200]
    found = elo_update(equal, 0, 2, 1.0, k=20.0)
    surprise = 1 - 1 / (1 + 10 ** (200 / 400))
    assert found.tolist() == pytest.approx([1000 + 20 * surprise, 1000, 1200 - 20 * surprise])
    assert elo_update(equal, 2, 0, 0.0, k=20.0).tolist() == pytest.approx(found.tolist())


def test_length_controlled_win_rate():
    log_ratio = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    won = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 1])
    assert length_controlled_win_rate(won, log_ratio).item() == pytest.approx(0.75)  # length makes no difference here
    assert length_controlled_win_rate(won, torch.zeros(8)).item() == pytest.approx(0.75)
    ratio = torch.randn(400)
    p = torch.sigmoid(0.4 + 1.5 * (ratio + 1))
    exact = length_controlled_win_rate(p, ratio + 1)  # expectations for outcomes: the model itself is found
    assert exact.item() == pytest.approx(1 / (1 + math.exp(-0.4))) and p.mean().item() > exact.item() + 0.1


def test_refusals():
    with pytest.raises(ShapeError):
        bradley_terry_ratings(torch.zeros(2, 3))
    for first, second, result in ((1, 1, 1.0), (0, 1, 1.5), (0, 1, -0.5)):
        with pytest.raises(ConfigError, match="two players"):
            elo_update(torch.zeros(2), first, second, result)
    with pytest.raises(DataError, match="told apart perfectly"):
        length_controlled_win_rate(torch.tensor([1.0, 1, 0, 0]), torch.tensor([1.0, 2, -1, -2]))
