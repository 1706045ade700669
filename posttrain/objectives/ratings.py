"""Ratings of models from comparisons of their answers: Bradley-Terry by maximum likelihood, and Elo.

A table of wins says who beat whom how often; a rating says how strong each is, with an interval, and predicts matches
that were never played. Ties count half for each side. Sections 08 and 09 of the explainer tell the story.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.errors import ConfigError, DataError
from posttrain.objectives.tokens import check_shapes, masked

_ITERATIONS = 60
_LONGEST = 3.0
_PRECISION = 1e-9
"""Newton's method takes no step longer than the one, in nats, and stops at one of the other."""
POINTS = 400 / math.log(10)
"""Elo points per nat: 100 points are 0.575646 nats and win 64.0 % of games."""


class Ratings(NamedTuple):
    """What `bradley_terry_ratings` finds."""

    score: Tensor
    """[M] in nats; they add up to 0."""
    covariance: Tensor
    """[M, M] of the scores: the inverse Fisher information on the space where they add up to 0."""

    @property
    def stderr(self) -> Tensor:
        """[M] standard error of each score."""
        return self.covariance.diagonal().sqrt()


def win_probability(gap: Tensor) -> Tensor:
    """Probability that the stronger of two wins.

        P(a beats b) = σ(s_a - s_b) = 1 / (1 + 10^(-(R_a - R_b) / 400))

    Bradley and Terry 1952; Elo 1978 in points.

    gap: any shape, s_a - s_b in nats (divide points by `POINTS`). Returns the same shape.

    A gap of 100 points wins 0.640065. Section 09.
    """
    return torch.sigmoid(gap)


def elo_points(score: Tensor, *, base: float = 1000.0) -> Tensor:
    """Scores in nats on the scale of chess.

        R = base + 400 / ln 10 · s

    Elo 1978.

    score: [M] nats (for a standard error, with base 0). base: what score 0 is called. Returns [M].

    0.575646 nats are 100 points. Section 09.
    """
    return base + POINTS * score


def bradley_terry_ratings(wins: Tensor, *, prior: float = 0.0) -> Ratings:
    """Maximum-likelihood ratings of M models from a table of wins.

        max Σ_ij w_ij log σ(s_i - s_j),   Σ s = 0,   information H_ij = -n_ij p_ij p_ji,  H_ii = Σ_j n_ij p_ij p_ji

    Bradley and Terry 1952; Ford 1957 for when a maximum exists; solved by Newton's method.

    wins: [M, M], w_ij how often i beat j; a tie is half a win for each; the diagonal is not read.
    prior: wins added to each side of each pair, 0 for the plain maximum. 0.5 keeps ratings finite where a model has
        won, or lost, everything.

    Returns scores and covariance. A score ± 1.96 standard errors is a 95 % interval; a difference has variance
    C_ii + C_jj - 2 C_ij. Raises DataError where no maximum exists: some group of models never lost to the others.

    Two models, 3 wins to 1: a difference of log 3, with variance 1/3 + 1 = 4/3. Section 09.
    """
    check_shapes("MM", wins)
    off = ~torch.eye(len(wins), dtype=torch.bool, device=wins.device)
    wins = masked(wins, off) + prior * off
    _check_connected(wins)

    def derivatives(score: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(score[:, None] - score[None, :])
        spread = (wins + wins.T) * p * p.T
        return (wins * p.T - wins.T * p).sum(1), torch.diag(spread.sum(1)) - spread

    score = _newton(derivatives, wins.new_zeros(len(wins)))
    return Ratings(score, torch.linalg.pinv(derivatives(score)[1]))


def elo_update(points: Tensor, first: int, second: int, result: float, *, k: float = 32.0) -> Tensor:
    """Elo ratings after one more game: the old ones, moved by the surprise.

        R_a ← R_a + k (S - E),   R_b ← R_b - k (S - E),   E = 1 / (1 + 10^(-(R_a - R_b) / 400))

    Elo 1978. The result depends on the order of games; `bradley_terry_ratings` does not.

    points: [M], not changed. first, second: who played. result: S, 1 where the first won, 0 where the second did, 0.5
        for a tie. k: how far one game moves.

    Returns the new [M]; their sum stays. Raises ConfigError for one player or a result outside 0 to 1.

    Equals at k = 32: a win moves 16 points each way. Section 09.
    """
    check_shapes("M", points)
    if first == second or not 0 <= result <= 1:
        raise ConfigError(f"player {first} against {second}, result {result}: two players, and a result from 0 to 1.")
    moved = k * (result - win_probability((points[first] - points[second]) / POINTS))
    players = torch.tensor([first, second], device=points.device)
    return points.index_add(0, players, torch.stack([moved, -moved]).to(points.dtype))


def length_controlled_win_rate(won: Tensor, log_ratio: Tensor) -> Tensor:
    """The win rate that would be seen if both sides wrote answers of one length.

        P(win) = σ(a + b · log(|y| / |y'|)),   reported σ(a)

    Stiennon et al. 2020 (arXiv 2009.01325); AlpacaEval 2 refines it (Dubois et al. 2024, arXiv 2404.04475).

    won: [N], 1 for a win, 0 for a loss, 0.5 for a tie. log_ratio: [N], log of our length over theirs.

    Returns a scalar. Where lengths are equal throughout, the plain win rate. Coupled: a fit over all comparisons.
    Raises DataError where length tells wins from losses perfectly, so that no fit exists.

    Wins that do not depend on length leave the win rate as it is. Section 08.
    """
    check_shapes("N", won, log_ratio)
    columns = torch.stack([torch.ones_like(log_ratio), log_ratio], 1)

    def derivatives(weights: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(columns @ weights)
        return columns.T @ (won - p), columns.T @ (columns * (p * (1 - p))[:, None])

    return torch.sigmoid(_newton(derivatives, columns.new_zeros(2))[0])


def _newton(derivatives: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Where a concave log-likelihood is highest. derivatives: its slope and minus its second derivative, which may be
    singular along directions that change nothing."""
    for _ in range(_ITERATIONS):
        slope, information = derivatives(x)
        step = torch.linalg.pinv(information) @ slope
        x = x + step * (_LONGEST / step.norm()).clamp(max=1)
        if step.norm() < _PRECISION:
            return x
    raise DataError(
        f"no fit was reached in {_ITERATIONS} steps: these comparisons can be told apart perfectly, or nearly so, and "
        "the likelihood has no highest point. Compare more."
    )


def _check_connected(wins: Tensor) -> None:
    """Raise unless every model beat every other directly or through others."""
    reach = (wins > 0) | torch.eye(len(wins), dtype=torch.bool, device=wins.device)
    for _ in range(len(wins).bit_length()):
        reach = (reach.to(torch.float64) @ reach.to(torch.float64)) > 0
    if not bool(reach.all()):
        missing = (~reach).nonzero()[0].tolist()
        raise DataError(
            f"no chain of wins leads from model {missing[0]} to model {missing[1]}, so the likelihood grows without "
            "end as their ratings part. Play more games, leave one out, or set prior = 0.5."
        )
