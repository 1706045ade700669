"""Small networks for control: policies over choices or over numbers, and a value; orthogonal weights, tanh between.

A policy is a module that maps observations to a distribution, plus `act`, which turns uniform numbers into actions: no
generator is drawn from, so an action is a pure function of weights, observation and place. Section 11 of the book.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from posttrain import rng
from posttrain.control.spaces import Spaces
from posttrain.objectives.kl import forward_kl
from posttrain.objectives.tokens import entropy as entropy_of


class Categorical(NamedTuple):
    """A distribution over K choices at each of M observations."""

    logits: Tensor
    """[M, K]"""

    def logp(self, action: Tensor) -> Tensor:
        """[M] log-probabilities of the choices taken. action: [M]."""
        return self.logits.log_softmax(1).gather(1, action[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """[M] in nats."""
        return entropy_of(self.logits)

    def kl(self, new: "Categorical") -> Tensor:
        """[M] kl(self ‖ new) in nats, exact."""
        return forward_kl(new.logits, self.logits)

    def sample(self, u: Tensor) -> Tensor:
        """[M] choices by inversion: the first whose cumulated probability exceeds u. u: [M, 1] in [0, 1)."""
        below = self.logits.double().softmax(1).cumsum(1) <= u
        return below.sum(1).clamp(max=self.logits.shape[1] - 1)


class Gaussian(NamedTuple):
    """A normal distribution with independent coordinates at each of M observations."""

    mean: Tensor
    """[M, A]"""
    log_std: Tensor
    """[M, A]"""

    def logp(self, action: Tensor) -> Tensor:
        """[M] log-densities, summed over coordinates. action: [M, A]."""
        z = (action - self.mean) / self.log_std.exp()
        return -(z.square() / 2 + self.log_std + math.log(2 * math.pi) / 2).sum(1)

    def entropy(self) -> Tensor:
        """[M] differential entropy in nats; it may be negative."""
        return (self.log_std + math.log(2 * math.pi * math.e) / 2).sum(1)

    def kl(self, new: "Gaussian") -> Tensor:
        """[M] kl(self ‖ new) in nats, exact: Σ log(σ'/σ) + (σ² + (μ - μ')²) / 2σ'² - 1/2."""
        spread = (2 * (self.log_std - new.log_std)).exp()
        moved = ((self.mean - new.mean) / new.log_std.exp()).square()
        return (new.log_std - self.log_std + (spread + moved - 1) / 2).sum(1)

    def sample(self, u: Tensor) -> Tensor:
        """[M, A] by inversion of the normal distribution. u: [M, A] in [0, 1)."""
        z = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).to(self.mean.dtype)
        return self.mean + self.log_std.exp() * z


class Mlp(nn.Module):
    """Linear layers with tanh between them."""

    def __init__(self, sizes: Sequence[int], seed: int, *, gain: float):
        """sizes: of the layers, input first. seed: of the weights. gain: of the last layer; the others have √2."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        for layer in self.layers:
            last = layer is self.layers[-1]
            nn.init.orthogonal_(layer.weight, gain if last else math.sqrt(2), generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[M, sizes[0]] -> [M, sizes[-1]]"""
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


class Policy(nn.Module):
    """A policy for an environment: choices from logits, numbers from means and one learned deviation each."""

    def __init__(self, spaces: Spaces, hidden: Sequence[int], seed: int, *, log_std: float = -0.5):
        """hidden: sizes of the hidden layers. seed: of the weights. log_std: where the deviations begin."""
        super().__init__()
        self.choices = spaces.choices
        self.draws = spaces.moves or 1
        """Uniform numbers that one action takes."""
        out = spaces.choices or spaces.moves
        self.net = Mlp((spaces.seen, *hidden, out), rng.fold(seed, "policy"), gain=0.01)
        self.log_std = None if self.choices else nn.Parameter(torch.full((spaces.moves,), log_std))

    def forward(self, obs: Tensor) -> Categorical | Gaussian:
        """[M, D] -> the distribution at each observation."""
        out = self.net(obs)
        return Categorical(out) if self.log_std is None else Gaussian(out, self.log_std.expand_as(out))

    def act(self, obs: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities. obs: [M, D]. u: [M, draws], uniform in [0, 1)."""
        found = self(obs)
        action = found.sample(u)
        return action, found.logp(action)

    def blank(self, *shape: int) -> Tensor:
        """Room for actions."""
        return torch.zeros(*shape, dtype=torch.long) if self.choices else torch.zeros(*shape, self.draws)


class Value(nn.Module):
    """What an observation is worth."""

    def __init__(self, spaces: Spaces, hidden: Sequence[int], seed: int):
        """hidden: sizes of the hidden layers. seed: of the weights."""
        super().__init__()
        self.net = Mlp((spaces.seen, *hidden, 1), rng.fold(seed, "value"), gain=1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """[M, D] -> [M]"""
        return self.net(obs)[:, 0]
