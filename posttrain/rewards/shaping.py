"""Rewards for the form of an answer: how long it is, whether it stopped, whether it repeats itself.

Plain Python on lengths, ids and flags, so that a reward function of one's own can call them. They are added to a reward
or put in its place before advantages are made; a constant added to every answer of a group cancels there. Sections 22
and 24 of the explainer tell the story.
"""

import math
from collections.abc import Sequence

from posttrain.errors import ConfigError


def soft_overlong(length: int, *, max_len: int, buffer: int) -> float:
    """A penalty that grows over the last stretch before the limit, instead of a fall at the limit.

        0 up to L - B,   (L - B - |y|) / B up to L,   -1 beyond

    DAPO: Yu et al. 2025 (arXiv 2503.14476), eq. 13. OpenRLHF adds a factor times this to the reward.

    length: |y|, tokens of the answer. max_len: L. buffer: B, from 1 to L.

    Returns a number from -1 to 0. L = 20480, B = 4096: 18432 tokens get -0.5. Section 22.
    """
    if not 0 < buffer <= max_len:
        raise ConfigError(f"buffer = {buffer} with max_len = {max_len}: the stretch lies between 0 and the limit.")
    return -min(max(length - (max_len - buffer), 0) / buffer, 1.0)


def repetition(ids: Sequence[int], *, n: int = 3, penalty: float = -1.0) -> float:
    """A penalty for the share of n-grams that occurred before.

        (1 - different n-grams / all n-grams) · p

    Yeo et al. 2025 (arXiv 2502.03373), appendix C.2, as TRL computes it.

    ids: tokens of the answer, without padding. n: tokens per n-gram, at least 1. penalty: p, not positive.

    Returns a number from p to 0; 0 for an answer of fewer than n tokens. Raises ConfigError for a positive penalty.

    Five equal tokens with n = 2 have one bigram of four: -0.75. Section 22.
    """
    if n < 1 or penalty > 0:
        raise ConfigError(
            f"n = {n}, penalty = {penalty}: n-grams have a token at least, and a penalty is not positive."
        )
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    different = len({tuple(ids[i : i + n]) for i in range(total)})
    return (1 - different / total) * penalty


def stop_properly(reward: float, truncated: bool, *, scale: float) -> float:
    """A reward that shrinks where the answer ran into the limit instead of ending.

        r' = c · r where truncated, else r

    ProRL: Liu et al. 2025 (arXiv 2505.24864), as NeMo-RL and OpenRLHF compute it. A negative reward shrinks too: being
    cut off then pays for a wrong answer, where `replace_truncated` does not let it.

    reward: r. truncated: whether the token budget ran out. scale: c, from 0 to 1.

    Returns a number. Reward 1 with c = 0.3 becomes 0.3. Section 24.
    """
    if not 0 <= scale <= 1:
        raise ConfigError(f"scale = {scale}: from 0 (a cut answer earns nothing) to 1 (no change).")
    return scale * reward if truncated else reward


def replace_truncated(reward: float, truncated: bool, *, value: float) -> float:
    """A reward that is a fixed one where the answer ran into the limit instead of ending.

        r' = v where truncated, else r

    Tülu 3 (Lambert et al. 2024, arXiv 2411.15124) gives -10 to an answer without its end; OpenRLHF does so for a
    negative stop_properly_penalty_coef.

    reward: r. truncated: whether the token budget ran out. value: v.

    Returns a number. Reward 1 with v = -0.5 becomes -0.5. Section 22.
    """
    return value if truncated else reward


def cosine_length(
    length: int,
    right: bool,
    *,
    max_len: int,
    right_range: tuple[float, float] = (1.0, 0.5),
    wrong_range: tuple[float, float] = (-1.0, -0.5),
    exceeded: float = -1.0,
) -> float:
    """A reward that falls with length for right answers and rises with it for wrong ones.

        a + ½ (b - a) (1 + cos(π |y| / L)),   from b at length 0 to a at L

    Yeo et al. 2025 (arXiv 2502.03373), section 4.2: be brief when you know, think longer when you do not.

    length: |y|. right: whether the answer is. max_len: L. right_range, wrong_range: (value at length 0, value at L).
    exceeded: the reward beyond L.

    Returns a number. Right at L/2: 0.75. Section 22.
    """
    if max_len < 1:
        raise ConfigError(f"max_len = {max_len}: lengths are measured against it, so it must be positive.")
    if length > max_len:
        return exceeded
    start, end = right_range if right else wrong_range
    return end + (start - end) * (1 + math.cos(math.pi * length / max_len)) / 2


def kimi_length(lengths: Sequence[int], right: Sequence[bool]) -> list[float]:
    """Rewards for being among the shorter answers of one's group.

        λ_i = 1/2 - (|y_i| - min) / (max - min);   λ_i where right, min(0, λ_i) where wrong

    Kimi k1.5 (arXiv 2501.12599), section 2.3.3, with a weight that is 0 at first, lest it slow learning down.

    lengths, right: one per answer of a group. Returns one number each, from -1/2 to 1/2; all 0 where lengths are equal.

    Lengths 10, 20, 30, all right: 0.5, 0, -0.5. Section 22.
    """
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    shares = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [share if good else min(0.0, share) for share, good in zip(shares, right, strict=True)]
