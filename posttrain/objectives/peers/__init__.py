"""Oddities of other libraries, under their own names: what each does, where it matters, and why not to.

Numbers that come out of TRL, verl or OpenRLHF are reproduced with these, and compared in `tests/oracles`. Nothing in
the library itself calls them. What a peer does differently by a number (an epsilon, a divisor) is an argument of our
own function; here stands what it does differently in kind. One file per topic; this one lists the names.
"""

from posttrain.objectives.peers.advantages import (
    keep_lone,
    openrlhf_whiten,
    openrlhf_whiten_rows,
    trl_whiten,
    verl_center_live,
    verl_moments,
    verl_optimal_token,
    verl_pass_at_k,
    verl_whiten,
    verl_zscore,
)
from posttrain.objectives.peers.kl import openrlhf_kl, openrlhf_unbiased_kl, verl_kl, verl_masked_mean
from posttrain.objectives.peers.policy import (
    capped_weight,
    sampler_of,
    spread_over_tokens,
    trl_policy_weights,
    trl_top_entropy,
    verl_weights,
)
from posttrain.objectives.peers.preference import trl_nash_md
from posttrain.objectives.peers.returns import openrlhf_gae, openrlhf_rewards_to_go, openrlhf_token_rewards

__all__ = [
    "capped_weight",
    "keep_lone",
    "openrlhf_gae",
    "openrlhf_kl",
    "openrlhf_rewards_to_go",
    "openrlhf_token_rewards",
    "openrlhf_unbiased_kl",
    "openrlhf_whiten",
    "openrlhf_whiten_rows",
    "sampler_of",
    "spread_over_tokens",
    "trl_nash_md",
    "trl_policy_weights",
    "trl_top_entropy",
    "trl_whiten",
    "verl_center_live",
    "verl_kl",
    "verl_masked_mean",
    "verl_moments",
    "verl_optimal_token",
    "verl_pass_at_k",
    "verl_weights",
    "verl_whiten",
    "verl_zscore",
]
