"""Which function of ours answers a golden case: one dictionary, and as little as possible on the way there.

An adapter takes a `golden.Case` and returns every output of the case by name. It renames, casts, slices, pads the
first column, passes constants, applies weights and calls backward, and nothing else: all mathematics is in the package,
where users find it (`test_adapter_is_thin.py` walks this file). What a peer does differently is an argument with a
meaning, or a named function in `posttrain.objectives.peers`.
"""

from collections.abc import Callable

import torch
from golden import Case
from torch import Tensor

Outputs = dict[str, Tensor]


def gradients(loss: Tensor, **leaves: Tensor) -> Outputs:
    """grad_NAME for each leaf; zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"grad_{name}": g for name, g in zip(leaves, found, strict=True)}


# --- logprobs ---


# --- kl ---


# --- sft ---


# --- reward_model ---


# --- gae ---


# --- whiten ---


# --- ppo ---


# --- aggregation ---


# --- rollout_correction ---


# --- grpo ---


# --- rloo ---


# --- advantages ---


# --- data ---


# --- verl_losses ---


# --- dpo ---


# --- reference_free ---


# --- kto ---


# --- distill ---


# --- rewards ---


# --- evaluation ---


# --- models ---


# --- prm ---


# --- online ---


ADAPTERS: dict[str, dict[str, Callable[[Case], Outputs]]] = {
    "logprobs": {},
    "kl": {},
    "sft": {},
    "reward_model": {},
    "gae": {},
    "whiten": {},
    "ppo": {},
    "aggregation": {},
    "rollout_correction": {},
    "grpo": {},
    "rloo": {},
    "advantages": {},
    "data": {},
    "verl_losses": {},
    "dpo": {},
    "reference_free": {},
    "kto": {},
    "distill": {},
    "rewards": {},
    "evaluation": {},
    "models": {},
    "prm": {},
    "online": {},
}
"""Family -> name of the case -> adapter."""


def answer(case: Case) -> Outputs:
    """What our functions give for a case. Raises KeyError for a case that nobody answers."""
    return ADAPTERS[case.family][case.name](case)
