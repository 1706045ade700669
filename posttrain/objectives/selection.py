"""Choosing among several answers to one prompt, and what the choice is worth: best-of-n, votes, pass@k.

Picking costs no gradient and trains nothing, yet moves the distribution of what is said as far from the sampler as a
training run may; on a finite set that distance is known exactly. Estimates come from N answers per prompt and are exact
averages over all ways to draw fewer. Counts are in float64. Sections 15, 18, 19 and 21 of the explainer tell the story.
"""

import math
from collections import Counter
from typing import Literal

import torch
from torch import Tensor

from posttrain.errors import ConfigError, DataError, ShapeError
from posttrain.objectives.tokens import check_shapes, masked

Ties = Literal["share", "first"]


def best_of_n(score: Tensor, mask: Tensor) -> Tensor:
    """Which answer of each prompt has the highest score; the first of equals.

        i* = argmax_i r(x, y_i)

    Stiennon et al. 2020 (arXiv 2009.01325); Nakano et al. 2021 (arXiv 2112.09332).

    score, mask: [P, N]; answers outside the mask are not chosen. Returns [P], positions; -1 where there is no answer.

    Scores (0.2, 0.9, 0.9) give 1. Section 18.
    """
    check_shapes("PN", score, mask)
    top = torch.where(mask, score, -torch.inf).amax(1, keepdim=True)
    return _first(mask & (score == top))


def best_of_n_policy(p: Tensor, reward: Tensor, n: int) -> Tensor:
    """The distribution of the best of n draws from a finite set, ties broken at random.

        π_n(y) = p(y) · (F≤(y)^n - F<(y)^n) / (F≤(y) - F<(y))

    Beirami et al. 2024 (arXiv 2401.01879); F≤ and F< are the probabilities of a reward at most, or below, that of y.

    p: [..., V] probabilities that add up to 1. reward: [..., V]; only their order counts. n: draws, at least 1.

    Returns [..., V]. n = 1 gives p. p = (.4, .3, .2, .1) with rising rewards and n = 4 gives (.0256, .2145, .4160,
    .3439). Section 18.
    """
    return p * _tilt(p, reward, n)


def best_of_n_kl(p: Tensor, reward: Tensor, n: int) -> Tensor:
    """Exact kl(best-of-n ‖ sampler) on a finite set.

        Σ_y π_n(y) log(π_n(y) / p(y))

    Beirami et al. 2024 (arXiv 2401.01879). Never above `best_of_n_bound`; far below it where answers repeat or tie.

    p, reward: [..., V] as in `best_of_n_policy`. n: draws. Returns [...], nats.

    The example there gives 0.5871, and the bound 0.6363. Section 15.
    """
    tilt = _tilt(p, reward, n)
    chosen = p * tilt
    return (chosen * (tilt + (chosen == 0)).log()).sum(-1)  # what is never chosen adds 0 · log 1


def best_of_n_bound(n: int) -> float:
    """The usual figure for the KL of best-of-n, exact where no two answers have the same reward or are the same.

        log n - (n - 1) / n

    Stiennon et al. 2020 (arXiv 2009.01325), appendix G.3; an upper bound by Beirami et al. 2024 (arXiv 2401.01879).

    n: draws, at least 1 (a number, no shapes). Returns nats. n = 4 gives 0.6363, n = 64 gives 3.1745. Section 15.
    """
    _check_draws(n)
    return math.log(n) - (n - 1) / n


def best_of_n_value(proxy: Tensor, gold: Tensor, n: int) -> Tensor:
    """Expected gold score of the answer that the proxy likes best of n, from N ≥ n answers, without new draws.

        Σ_i w_i g_i,   w_i = C(i-1, n-1) / C(N, n)   for the i-th smallest proxy score; equals share their weights

    Nakano et al. 2021 (arXiv 2112.09332); used by Gao et al. 2022 (arXiv 2210.10760).

    proxy, gold: [P, N]. n: from 1 to N. Returns [P]: the mean over all subsets of size n, so an unbiased estimate.

    n = 1 is the mean of gold, n = N the gold score of the proxy's favourite. Proxy (1, 2, 3), gold (5, 1, 3), n = 2:
    (1 + 2 · 3) / 3 = 2.3333. Section 15.
    """
    check_shapes("PN", proxy, gold)
    total = proxy.shape[1]
    if not 1 <= n <= total:
        raise ConfigError(f"best of {n} from {total} answers: n must lie between 1 and the number of answers.")
    below = (proxy[:, None, :] < proxy[:, :, None]).sum(2)
    at_most = (proxy[:, None, :] <= proxy[:, :, None]).sum(2)
    weight = (_share_of_subsets(at_most, total, n) - _share_of_subsets(below, total, n)) / (at_most - below)
    return (weight.to(gold.dtype) * gold).sum(1)


def unbiased_pass_at_k(right: Tensor, n: int | Tensor, k: int) -> Tensor:
    """Probability that k of the n answers, drawn without replacement, hold a right one.

        pass@k = 1 - C(n - c, k) / C(n, k)

    Chen et al. 2021 (arXiv 2107.03374), eq. 1: unbiased for 1 - (1 - p)^k, where 1 - (1 - c/n)^k is too low.

    right: [P], c, how many answers of each prompt are right. n: how many there are, a number or [P]. k: draws.

    Returns [P] in float64; average over prompts afterwards. Raises DataError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.

    n = 16, c = 2: 0.125 for k = 1, 0.45 for k = 4. Section 21.
    """
    n = _check_counts(right, n, k)
    return 1 - _share_of_subsets(n - right, n, k)


def pass_hat_k(right: Tensor, n: int | Tensor, k: int) -> Tensor:
    """Probability that k of the n answers, drawn without replacement, are all right: how reliable a policy is.

        pass^k = C(c, k) / C(n, k)

    τ-bench: Yao et al. 2024 (arXiv 2406.12045).

    right, n, k: as in `unbiased_pass_at_k`. Returns [P] in float64. Raises DataError as there.

    n = 4, c = 3: 0.75 for k = 1, 0.5 for k = 2, 0 for k = 4. Section 21.
    """
    return _share_of_subsets(right, _check_counts(right, n, k), k)


def majority_at_k(answers: Tensor, truth: Tensor, mask: Tensor, k: int, *, ties: Ties = "share") -> Tensor:
    """Probability that the most frequent answer among k of the N, drawn without replacement, is the right one.

        maj@k = (1/C(N,k)) Σ_{S, |S| = k} [truth is the mode of S],   ties as chosen

    Self-consistency: Wang et al. 2022 (arXiv 2203.11171). Counted exactly, in integers, without listing the subsets.

    answers: [P, N] ids of final answers, in sample order (equal answers, equal ids). truth: [P]. mask: [P, N], true
        where an answer could be read; an unread one is drawn and does not vote. k: draws, from 1 to N.
    ties: "share": of j leaders the right one counts 1/j. "first": the leader that came first in the sample wins (verl).

    Returns [P] in float64. Raises ConfigError for another word or a k out of range.

    Answers (0, 1, 0) with truth 0: 2/3 for k = 1; for k = 2 also 2/3 (shared), and "first" as well; 1 for k = 3.
    Section 19.
    """
    check_shapes("PN P PN", answers, truth, mask)
    if ties not in ("share", "first"):
        raise ConfigError(f'ties = "{ties}" is not one of share, first.')
    if not 1 <= k <= answers.shape[1]:
        raise ConfigError(f"maj@{k} of {answers.shape[1]} answers: k must lie between 1 and the number of answers.")
    rows = zip(answers.tolist(), truth.tolist(), mask.tolist(), strict=True)
    count = _majority_shared if ties == "share" else _majority_first
    return torch.tensor([count(*row, k) for row in rows], dtype=torch.float64)


def weighted_vote(answers: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Where the winner of a weighted vote is first given; weights of 1 make it the majority vote.

        a* = argmax_a Σ_{j: a_j = a} w_j

    Majority: Wang et al. 2022 (arXiv 2203.11171). With a verifier's scores as weights: Li et al. 2022 (arXiv
    2206.02336).

    answers: [P, N] ids of final answers. weight: [P, N]. mask: [P, N], true where an answer could be read.

    Returns [P], a position in the row: `answers.gather(1, i[:, None])` is the winner. Of equals the one given first
    wins; -1 where nobody votes.

    Answers (7, 8, 8) win at 1; with weights (0.9, 0.3, 0.3) at 0. Section 21.
    """
    check_shapes("PN", answers, weight, mask)
    same = (answers[:, :, None] == answers[:, None, :]) & mask[:, None, :]
    votes = masked(weight[:, None, :], same).sum(2)
    return best_of_n(votes, mask)


def _first(where: Tensor) -> Tensor:
    """[P] the first true position of each row, -1 where there is none."""
    return torch.where(where.any(1), where.to(torch.uint8).argmax(1), -1)


def _check_draws(n: int) -> None:
    if n < 1:
        raise ConfigError(f"n = {n}: the best of n needs one draw at least.")


def _tilt(p: Tensor, reward: Tensor, n: int) -> Tensor:
    """π_n / p: (F≤^n - F<^n) / (F≤ - F<), 0 where a level of reward has no probability."""
    _check_draws(n)
    if p.shape != reward.shape:
        raise ShapeError(f"{list(p.shape)} probabilities and {list(reward.shape)} rewards: one of each per answer.")
    mine, other, weight = reward[..., :, None], reward[..., None, :], p[..., None, :]
    below, level = masked(weight, other < mine).sum(-1), masked(weight, other == mine).sum(-1)
    return ((below + level).pow(n) - below.pow(n)) / (level + (level == 0))


def _share_of_subsets(part: Tensor, whole: int | Tensor, k: int) -> Tensor:
    """C(part, k) / C(whole, k), the share of subsets of size k that lie in a part: Π_i (part - i) / (whole - i)."""
    part = part.to(torch.float64)
    share = torch.ones_like(part)
    for i in range(k):
        share = share * ((part - i) / (whole - i))  # exactly 0 at i = part, and from there on
    return share


def _check_counts(right: Tensor, n: int | Tensor, k: int) -> Tensor:
    check_shapes("P", right)
    n = torch.as_tensor(n, device=right.device).expand_as(right)
    if not bool(((right >= 0) & (right <= n) & (n >= k)).all()) or k < 1:
        raise DataError(
            f"k = {k} of n = {n.tolist()[:8]} answers with {right.tolist()[:8]} right: expected 0 <= right <= n and "
            "1 <= k <= n."
        )
    return n


def _majority_shared(answers: list[int], truth: int, voted: list[bool], k: int) -> float:
    """Σ over m votes for the truth of the subsets where no other answer has more, each over its number of leaders."""
    sizes, whole = _sizes(answers, voted), math.comb(len(answers), k)
    total = 0.0
    for m, number in enumerate(_binomials(sizes.pop(truth, 0))[1:], 1):
        ways = {(m, 1): number}  # (votes, leaders) -> subsets
        for size in sizes.values():
            ways = _with_answer(ways, _binomials(size)[: m + 1], k, leads_at=m)
        ways = _with_answer(ways, _binomials(voted.count(False)), k)
        total += sum(number / (leaders * whole) for (votes, leaders), number in ways.items() if votes == k)
    return total


def _majority_first(answers: list[int], truth: int, voted: list[bool], k: int) -> float:
    """Σ over m votes for the truth and the place of the first: rivals with as many votes must all lie behind it."""
    sizes = _sizes(answers, voted)
    total = 0
    for place, answer in enumerate(answers):
        if answer != truth or not voted[place]:
            continue
        behind = _sizes(answers[place + 1 :], voted[place + 1 :])
        for m, number in enumerate(_binomials(behind[truth]), 1):
            ways = {(m, 1): number}
            for a, size in sizes.items():
                if a != truth:
                    ways = _with_answer(ways, [*_binomials(size)[:m], math.comb(behind[a], m)], k)
            ways = _with_answer(ways, _binomials(voted.count(False)), k)
            total += ways[k, 1]
    return total / math.comb(len(answers), k)


def _binomials(n: int) -> list[int]:
    """C(n, v) for v from 0 to n."""
    return [math.comb(n, v) for v in range(n + 1)]


def _sizes(answers: list[int], voted: list[bool]) -> Counter[int]:
    """How often each answer was given, by those who voted."""
    return Counter(a for a, counts in zip(answers, voted, strict=True) if counts)


def _with_answer(
    ways: dict[tuple[int, int], int], choices: list[int], k: int, leads_at: int | None = None
) -> dict[tuple[int, int], int]:
    """Ways to draw after one more answer, which is drawn v times in choices[v] ways; at `leads_at` it ties the lead.
    Draws of more than k are dropped."""
    after: Counter[tuple[int, int]] = Counter()
    for (votes, leaders), number in ways.items():
        for v, more in enumerate(choices):
            drawn = votes + v
            if drawn <= k:
                after[drawn, leaders + (v == leads_at)] += number * more
    return after
