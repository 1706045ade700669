"""Every loss on pairs beside a plain-Python version of it, written from the papers with `math` and no tensor.

A loss takes (chosen, rejected, ref_chosen, ref_rejected, chosen_length, rejected_length) and reads what it needs.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from posttrain.objectives import preference as p

BETA = 0.3


class Row(NamedTuple):
    """One pair in plain numbers."""

    sw: float
    sl: float
    rw: float
    rl: float
    nw: float
    nl: float

    @property
    def uw(self) -> float:
        return self.sw - self.rw

    @property
    def ul(self) -> float:
        return self.sl - self.rl

    @property
    def h(self) -> float:
        return self.uw - self.ul


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def nls(z: float) -> float:
    """-log σ(z)."""
    return math.log(1 + math.exp(-z))


def smooth(z: float, e: float) -> float:
    return (1 - e) * nls(z) + e * nls(-z)


def odds(mean: float) -> float:
    probability = math.exp(mean)
    return probability / (1 - probability)


def bent(mean: float, alpha: float) -> float:
    return (1 - math.exp(mean) ** -alpha) / alpha


def discopop(rho: float, tau: float) -> float:
    m = sigma(rho / tau)
    return (1 - m) * nls(rho) + m * math.exp(-rho)


def exo(q: float, e: float) -> float:
    return q * math.log(q / (1 - e)) + (1 - q) * math.log((1 - q) / e)


class Entry(NamedTuple):
    ours: Callable[..., tuple[Tensor, dict]]
    plain: Callable[[Row], float]


def _pair(f, **settings):
    return lambda w, lo, rw, rl, nw, nl: f(w, lo, rw, rl, beta=BETA, **settings)


def _long(f, **settings):
    return lambda w, lo, rw, rl, nw, nl: f(w, lo, rw, rl, chosen_length=nw, rejected_length=nl, beta=BETA, **settings)


def _free(f, **settings):
    return lambda w, lo, rw, rl, nw, nl: f(w, lo, beta=BETA, **settings)


def _long_free(f, **settings):
    return lambda w, lo, rw, rl, nw, nl: f(w, lo, chosen_length=nw, rejected_length=nl, beta=BETA, **settings)


def _each(number: float):
    return lambda w, *_: torch.full_like(w, number)


def _with(f, name: str, make):
    """A loss that takes one more tensor [B]."""
    return lambda w, lo, rw, rl, nw, nl: f(w, lo, rw, rl, beta=BETA, **{name: make(w)})


# fmt: off
TABLE: dict[str, Entry] = {
    "dpo": Entry(_pair(p.dpo), lambda x: nls(BETA * x.h)),
    "cdpo": Entry(_pair(p.cdpo, label_smoothing=0.2), lambda x: smooth(BETA * x.h, 0.2)),
    "robust": Entry(_pair(p.robust, label_smoothing=0.2),
                    lambda x: (0.8 * nls(BETA * x.h) - 0.2 * nls(-BETA * x.h)) / 0.6),
    "soft_dpo": Entry(_with(p.soft_dpo, "probability", _each(0.3)), lambda x: smooth(BETA * x.h, 0.7)),
    "ipo": Entry(_pair(p.ipo), lambda x: (x.h - 1 / (2 * BETA)) ** 2),
    "hinge": Entry(_pair(p.hinge), lambda x: max(0.0, 1 - BETA * x.h)),
    "exo": Entry(_pair(p.exo, label_smoothing=0.02), lambda x: exo(sigma(BETA * x.h), 0.02)),
    "discopop": Entry(_pair(p.discopop, tau=0.4), lambda x: discopop(BETA * x.h, 0.4)),
    "odpo": Entry(_with(p.odpo, "offset", _each(0.7)), lambda x: nls(BETA * x.h - 0.7)),
    "f_dpo_forward_kl": Entry(_pair(p.f_dpo, divergence="forward_kl"),
                              lambda x: nls(BETA * (math.exp(-x.ul) - math.exp(-x.uw)))),
    "f_dpo_js": Entry(_pair(p.f_dpo, divergence="js"), lambda x: nls(BETA * (nls(x.ul) - nls(x.uw)))),
    "f_dpo_alpha": Entry(_pair(p.f_dpo, divergence="alpha", alpha=0.6),
                         lambda x: nls(BETA * (math.exp(-0.4 * x.uw) - math.exp(-0.4 * x.ul)) / -0.4)),
    "dpo_norm": Entry(_long(p.dpo_norm), lambda x: nls(BETA * (x.uw / x.nw - x.ul / x.nl))),
    "ipo_norm": Entry(_long(p.ipo_norm), lambda x: (x.uw / x.nw - x.ul / x.nl - 1 / (2 * BETA)) ** 2),
    "rdpo": Entry(_long(p.rdpo, alpha=0.2), lambda x: nls(BETA * x.h + 0.2 * (x.nw - x.nl))),
    "dpop": Entry(_pair(p.dpop, penalty=3.0), lambda x: nls(BETA * (x.h - 3 * max(0.0, x.rw - x.sw)))),
    "apo_zero": Entry(_pair(p.apo_zero), lambda x: 1 - sigma(BETA * x.uw) + sigma(BETA * x.ul)),
    "apo_down": Entry(_pair(p.apo_down), lambda x: sigma(BETA * x.uw) + 1 - sigma(BETA * x.h)),
    "nca": Entry(_pair(p.nca), lambda x: nls(BETA * x.uw) + nls(-BETA * x.uw) / 2 + nls(-BETA * x.ul) / 2),
    "bco_pair": Entry(_pair(p.bco_pair), lambda x: nls(BETA * x.uw) + nls(-BETA * x.ul)),
    "mpo": Entry(_pair(p.mpo, preference=0.7, quality=0.4),
                 lambda x: 0.7 * nls(BETA * x.h) + 0.4 * (nls(BETA * x.uw) + nls(-BETA * x.ul))),
    "cal_dpo": Entry(_pair(p.cal_dpo),
                     lambda x: nls(x.h) + (x.uw - 0.5 / BETA) ** 2 + (x.ul + 0.5 / BETA) ** 2),
    "sppo_hard": Entry(_pair(p.sppo_hard), lambda x: (x.uw - 0.5 / BETA) ** 2 + (x.ul + 0.5 / BETA) ** 2),
    "xpo": Entry(_with(lambda *a, **k: p.xpo(*a, alpha=0.1, **k), "drawn_by_reference", _each(-4.0)),
                 lambda x: nls(BETA * x.h) - 0.4),
    "orpo": Entry(_long_free(p.orpo), lambda x: BETA * nls(math.log(odds(x.sw / x.nw) / odds(x.sl / x.nl)))),
    "simpo": Entry(_long_free(p.simpo, gamma=0.4), lambda x: nls(BETA * x.sw / x.nw - BETA * x.sl / x.nl - 0.4)),
    "simpo_smoothed": Entry(_long_free(p.simpo, gamma=0.4, label_smoothing=0.1),
                            lambda x: smooth(BETA * x.sw / x.nw - BETA * x.sl / x.nl - 0.4, 0.1)),
    "alphapo": Entry(_long_free(p.alphapo, gamma=0.4, alpha=0.25, label_smoothing=0.1),
                     lambda x: smooth(BETA * (bent(x.sw / x.nw, 0.25) - bent(x.sl / x.nl, 0.25)) - 0.4, 0.1)),
    "cpo": Entry(_free(p.cpo, label_smoothing=0.1), lambda x: smooth(BETA * (x.sw - x.sl), 0.1)),
    "slic": Entry(_free(p.slic), lambda x: max(0.0, 1 - BETA * (x.sw - x.sl))),
    "cpo_ipo": Entry(_long_free(p.cpo_ipo), lambda x: (x.sw / x.nw - x.sl / x.nl - 0.5 / BETA) ** 2),
}
# fmt: on

REWARDS: dict[str, Callable[[Row], tuple[float, float]]] = {
    "dpo_norm": lambda x: (x.uw / x.nw, x.ul / x.nl),
    "ipo_norm": lambda x: (x.uw / x.nw, x.ul / x.nl),
    "f_dpo_forward_kl": lambda x: (-math.exp(-x.uw), -math.exp(-x.ul)),
    "f_dpo_js": lambda x: (-nls(x.uw), -nls(x.ul)),
    "f_dpo_alpha": lambda x: tuple((math.exp(-0.4 * u) - 1) / -0.4 for u in (x.uw, x.ul)),
    "orpo": lambda x: (math.log(odds(x.sw / x.nw)) / BETA, math.log(odds(x.sl / x.nl)) / BETA),
    "simpo": lambda x: (x.sw / x.nw, x.sl / x.nl),
    "simpo_smoothed": lambda x: (x.sw / x.nw, x.sl / x.nl),
    "alphapo": lambda x: (bent(x.sw / x.nw, 0.25), bent(x.sl / x.nl, 0.25)),
    "cpo": lambda x: (x.sw, x.sl),
    "slic": lambda x: (x.sw, x.sl),
    "cpo_ipo": lambda x: (x.sw / x.nw, x.sl / x.nl),
}
"""The two rewards over β where they are not the log-ratios."""
