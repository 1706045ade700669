"""Fitting over-optimisation.

Gao and colleagues found that the true reward of a policy pushed by RL follows R(d) = d (α - β log d), with d the square
root of the KL. The law is linear in α and β. Fit both to measured points by least squares on R.
"""

import torch
from torch import Tensor

from posttrain.exercises.exercise import Exercise, draw, tensor
from posttrain.objectives.scaling import Law, fit_rl, gold_rl


def fit(kl: Tensor, gold: Tensor) -> Tensor:
    """α and β that make Σ (gold - d (α - β log d))² smallest, with d = √kl.

    kl: [M] in nats, all above 0. gold: [M], the true reward, 0 before training. Returns [2]: α, β.
    """
    raise NotImplementedError


def solution(kl: Tensor, gold: Tensor) -> Tensor:
    """Two columns, d and -d log d, and no constant: the law is 0 at the start."""
    d = kl.sqrt()
    columns = torch.stack([d, -d * d.log()], 1)
    return torch.linalg.lstsq(columns, gold[:, None]).solution[:, 0]


def expected(kl: Tensor, gold: Tensor) -> Tensor:
    """The library's."""
    return torch.stack(list(fit_rl(kl.sqrt(), gold)))


def cases():
    """Points on a law; the same with noise."""
    kl = tensor(0.5, 1, 2, 5, 10, 20, 50, 100)
    exact = gold_rl(kl.sqrt(), Law(tensor(0.5)[0], tensor(0.2)[0]))
    return [{"kl": kl, "gold": exact}, {"kl": kl, "gold": exact + draw(8, seed=14, scale=0.05)}]


def _in_kl(kl, gold):
    return expected(kl.square(), gold)


def _best_of_n_law(kl, gold):
    columns = torch.stack([kl.sqrt(), -kl], 1)
    return torch.linalg.lstsq(columns, gold[:, None]).solution[:, 0]


def _sign(kl, gold):
    return expected(kl, gold) * tensor(1, -1)


def _of_the_ratio(kl, gold):
    d = kl.sqrt()
    columns = torch.stack([torch.ones_like(d), -d.log()], 1)
    return torch.linalg.lstsq(columns, (gold / d)[:, None]).solution[:, 0]


EXERCISE = Exercise(
    stub=fit,
    solution=solution,
    expected=expected,
    cases=cases,
    mistakes={
        "The distance is the square root of the KL, not the KL.": _in_kl,
        "That is the law of best-of-n, d (α - β d). RL has a logarithm.": _best_of_n_law,
        "β has the wrong sign: the law subtracts β log d.": _sign,
        "That fits R/d against log d: the same law with other weights. Fit R itself.": _of_the_ratio,
    },
)
