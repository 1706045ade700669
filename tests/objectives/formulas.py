"""Every public formula of `posttrain.objectives` as a row of one table; `formula_row` says what a row holds.

`test_every_formula` walks it. A public function that is neither here nor among the exemptions fails a test there.
"""

import math

import torch
from formula_row import Formula

from posttrain import objectives as o
from posttrain.objectives import advantages, peers
from posttrain.objectives.average import Average
from posttrain.objectives.gates import Gate
from posttrain.objectives.kl import ESTIMATORS
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.pull import token_pull
from posttrain.objectives.regularizers import Entropy, Kl, Proximal
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.token_masks import Chosen, Focus

PAIR = "chosen, rejected, ref_chosen, ref_rejected: N"
FREE = "chosen, rejected: N"
LENGTHS = "; chosen_length, rejected_length: N"


def _spread(x):
    """Distances between the numbers of a row, or of a vector."""
    return (x[..., :, None] - x[..., None, :])[..., *torch.triu_indices(x.shape[-1], x.shape[-1], 1)]


def _h(x, beta=0.3):
    return beta * (x.chosen - x.rejected - x.ref_chosen + x.ref_rejected)


def _total(x, mask):
    return torch.where(mask, x, 0.0).sum(1)


# fmt: off
TOKENS = [
    Formula(o.masked, "x, mask: NT"),
    Formula(o.answers, "logp, mask: NT"),
    Formula(o.entropy, "logits: NTV", {"temperature": 0.7}),
    Formula(o.token_logprobs, "logits: NTV; tokens: NT", pads="right"),
    Formula(o.token_logprobs, "logits: NTV; tokens: NT; temperature/length: N", pads="right"),
    Formula(o.values_before, "values: NT", pads="right"),
    Formula(o.logits_before, "logits: NTV", pads="right"),
    Formula(o.logprobs_from_hidden, "hidden: ND; weight/hidden: VD; targets/ids: N",
            {"needs": ("entropy", "sum_sq", "mean_logp", "mean_logit", "top1")}),
    *(Formula(o.token_weights, "mask: NT; group: N", {"average": Average(*kind)}, coupled="all")
      for kind in (("token",), ("sequence",), ("prompt",), ("sum",), ("constant", 9))),
    *(Formula(o.token_weights, "mask: NT; group: N", {"average": Average(*kind), "total": 11.0}, coupled=coupled)
      for kind, coupled in ((("token",), ""), (("sequence",), ""), (("prompt",), "group"), (("constant", 9), ""))),
    *(Formula(o.weight_total, "mask: NT; group: N", {"average": Average(kind)}, coupled="all")
      for kind in ("token", "sequence", "prompt")),
    *(Formula(o.row_weights, "mask: NT; group: N", {"average": Average(kind)}, coupled="all")
      for kind in ("sequence", "prompt", "pair")),
    *(Formula(f, "logits, ref_logits: NTV") for f in (o.reverse_kl, o.forward_kl, o.jensen_shannon)),
    *(Formula(f, "log_ratio: NT") for f in (o.k1, o.k2, o.k3, o.bounded_exp)),
    Formula(o.absolute, "log_ratio: NT", kinks=lambda x: x.log_ratio),
    *(Formula(o.kl_estimate, "log_ratio: NT", {"estimator": name}, kinks=lambda x: x.log_ratio,
              slope=(lambda x, at: x.log_ratio.square() / 2) if name.endswith("+") else None) for name in ESTIMATORS),
    Formula(o.with_gradient_of, "value, slope: NT", stopped="value", slope=lambda x, at: x.slope),
    Formula(o.reweighted_k2, "log_ratio, drift: NT", {"cap": 1.5}, stopped="drift"),
    Formula(o.reweighted_k3, "log_ratio, drift: NT"),
    Formula(o.sequence_kl, "kl, mask: NT"),
    Formula(o.tilted, "ref_logits: NV; reward: NV", {"beta": 0.5}),
    Formula(o.tilted_samples, "reward: NV", {"beta": 0.5}),
    Formula(o.binary_tv, "logp, other: NT", stopped="logp other"),
    Formula(o.binary_kl, "logp, other: NT", stopped="logp other",
            infinite="where `other` is sure of a token that the first policy is not sure of"),
    Formula(o.cross_entropy, "logp, mask: NT"),
    Formula(o.smoothed_cross_entropy, "logp, mean_logp, mask: NT", {"smoothing": 0.2}),
    Formula(o.dft, "logp, mask: NT", slope=lambda x, at: -x.logp.exp()),
    Formula(o.prompt_completion_weights, "prompt, completion: NT", {"prompt_weight": 0.3}, coupled="all"),
    Formula(o.prompt_completion_weights, "prompt, completion: NT", {"prompt_weight": 0.3, "total": 9.0}),
]

DISTILLATION = [
    Formula(o.logit_distillation, "student_logits, teacher_logits: NTV; mask: NT", {"temperature": 1.5},
            stopped="teacher_logits"),
    *(Formula(o.generalized_jsd, "student_logits, teacher_logits: NTV; mask: NT", {"beta": beta},
              stopped="teacher_logits") for beta in (0.0, 0.3, 1.0)),
    Formula(o.jsd_from_hidden, "student_hidden: ND; student_head: VD; teacher_hidden: NE; teacher_head: VE",
            {"beta": 0.4, "chunk": 4}, stopped="teacher_hidden teacher_head"),
    *(Formula(f, "student_logp/top, teacher_logp/top: NTK; mask: NT", stopped="teacher_logp")
      for f in (o.top_k_renormalised, o.top_k_bucketed)),
    Formula(o.with_rest, "logp/top: NTK"),
    Formula(o.sampled_reverse_kl, "logp, teacher_logp, mask: NT", stopped="teacher_logp",
            slope=lambda x, at: -(at.teacher_logp - at.logp) * x.logp),
    Formula(o.teacher_advantage, "logp, teacher_logp, mask: NT", {"discount": 0.6}, stopped="logp teacher_logp"),
    Formula(o.minillm_advantage, "logp, teacher_logp, mask: NT", stopped="logp teacher_logp"),
    Formula(o.logprobs_of, "hidden: ND; weight/hidden: VD; ids: NK", {"temperature": 0.8, "chunk": 4}),
]

REWARDS = [
    Formula(o.bradley_terry, "chosen/score, rejected/score, margin: N", {"centering": 0.1, "label_smoothing": 0.2}),
    Formula(o.careless_bradley_terry, "first/score, second/score, label: N", {"error": 0.2}),
    Formula(o.davidson, "first, second: N; outcome: N; log_tie: "),
    Formula(o.top_choice, "scores, mask: NT; best/first: N", pads="right"),
    *(Formula(f, "scores, mask/prefix: NT", pads="right") for f in (o.plackett_luce, o.all_pairs)),
    Formula(o.outcome, "score: N; good: N"),
    Formula(o.calibration_error, "gap: N", stopped="gap", coupled="all"),
    Formula(o.process, "score, label, mask: NT"),
    Formula(o.two_class_score, "logits: NV", {"good": 2, "bad": 0}),
    *(Formula(o.answer_score, "score, mask: NT", {"how": how}, kinks=lambda x: _spread(x.score))
      for how in ("min", "product", "last", "mean", "odds")),
    *(Formula(f, "right, mask: NT") for f in (o.soft_estimate, o.hard_estimate)),
    Formula(o.until_first_error, "label, mask: NT"),
    Formula(o.progress, "value, mask: NT; start: N"),
    Formula(o.min_form, "reward/score, mask: NT", {"temperature": 0.5}),
    *(Formula(f, "logp, ref_logp, mask: NT", {"beta": 0.3}) for f in (o.implicit_process_rewards, o.implicit_reward)),
    Formula(o.ensemble_mean, "scores: EN"),
    Formula(o.worst_case, "scores: EN", kinks=lambda x: _spread(x.scores.T)),
    Formula(o.uncertainty_weighted, "scores: EN", {"weight": 0.4}),
    Formula(o.all_good, "rewards/score, references/score, mask: TN"),
    Formula(o.rescale, "reward: N", {"mean": 0.3, "std": 1.7, "to_mean": -0.1, "to_std": 0.6}),
    Formula(o.clip_reward, "reward: N", {"limit": 0.8}, kinks=lambda x: x.reward.abs() - 0.8),
    Formula(o.preference_as_reward, "reward/score: N; references/score: NK"),
    Formula(o.length_slope, "reward, length, mask: N", coupled="all"),
    Formula(o.without_length, "reward, length: N", {"slope": 0.3, "at": 2.0}),
]

RETURNS = [
    Formula(o.last_token, "mask: NT"),
    Formula(o.token_rewards, "score/reward: N; mask: NT; kl: NT", {"beta": 0.2, "clip": (-0.9, 0.9)}, stopped="kl",
            kinks=lambda x: x.score.abs() - 0.9),
    Formula(o.token_rewards, "score/reward, mask: NT"),
    Formula(o.rewards_to_go, "rewards, mask: NT", {"gamma": 0.9}),
    *(Formula(f, "rewards, values, mask: NT; last_value: N", {"gamma": 0.9, "lam": 0.7} | more,
              stopped="rewards values last_value")
      for f, more in ((o.gae, {}), (o.decoupled_gae, {"target_lam": 0.95}))),
    Formula(o.length_adaptive_lambda, "mask: NT", {"alpha": 0.5}),
    Formula(o.explained_variance, "values/reward, targets/reward, mask: NT", coupled="all",
            infinite="if all targets are equal"),
    Formula(o.value_loss, "values, old_values, targets, mask: NT", {"clip": None}, stopped="old_values targets"),
    Formula(o.value_loss, "values, old_values, targets, mask: NT", {"clip": 0.5}, stopped="old_values targets",
            kinks=lambda x: torch.stack([(x.values - x.old_values).abs() - 0.5, x.values - x.targets,
                                         (x.old_values - x.targets).abs() - 0.5])),
]

GROUP = [
    *(Formula(f, "reward, group: N", coupled="group") for f in (o.center, o.zscore, o.leave_one_out, o.group_std)),
    Formula(o.mean_ratio, "reward/positive, group: N", coupled="group"),
    Formula(o.length_weighted, "reward, group, length: N", coupled="group"),
    Formula(o.mixed, "reward, group: N", stopped="reward", coupled="group"),
    *(Formula(o.pass_at_k, "reward, group: N", {"k": k}, coupled="group") for k in (2, None)),
    Formula(o.pass_at_k_zscore, "reward/verdict, group: N", {"k": 2}, coupled="group"),
    Formula(o.moments, "x/reward, mask: NT", coupled="all"),
    *(Formula(o.whiten, "x/reward, mask: NT", {"shift": shift}, coupled="all") for shift in (True, False)),
    Formula(o.center_then_whiten, "reward, group: N; mask: NT", coupled="all"),
    *(Formula(f, "reward, group: N", coupled="all") for f in (o.center_then_scale, o.center_live)),
    *(Formula(f, "reward: N", coupled="all") for f in (o.batch_center, o.batch_zscore)),
    Formula(o.batch_zscore, "reward, mask: N", coupled="all",
            call=lambda reward, mask: o.batch_zscore(reward, given=mask)),
    Formula(o.weighted_sum, "rewards: NK; weights/reward: K", {"clip": (-1.1, 1.1)},
            kinks=lambda x: (x.rewards @ x.weights).abs() - 1.1),
    Formula(o.decoupled, "rewards: NK; group: N; weights/reward: K", coupled="all"),
    Formula(o.optimal_token, "token_reward, mask: NT; group: N; old_logp, sum_sq: NT", stopped="old_logp",
            coupled="group"),
    Formula(o.still_running, "mask: NT; group: N", coupled="group"),
]
_EXTRA = {"return": {"baseline": 0.3}, "pass_at_k": {"k": 2}, "pass_at_k_zscore": {"k": 2}}
_MORE = {"greedy": "; greedy: N", "decoupled": "; parts: NK", "optimal_token": "; old_logp, sum_sq: NT"}
_REWARDS = {"mean_ratio": "/positive", "pass_at_k_zscore": "/final"}
_WHOLE = ("batch_center", "batch_zscore", "batch_whiten", "center_then_whiten", "center_then_scale", "center_live",
          "decoupled")
ESTIMATES = [
    Formula(o.estimate, f"token_reward{_REWARDS.get(kind, '')}, mask: NT; group: N{_MORE.get(kind, '')}",
            {"kind": kind} | _EXTRA.get(kind, {}),
            stopped={"optimal_token": "old_logp", "decoupled": "token_reward"}.get(kind, ""),
            coupled="all" if kind in _WHOLE else "group" if kind in advantages.NEEDS_GROUP else "")
    for kind in advantages.ADVANTAGES if kind != "gae"
]

_EDGES = {"min": (0.8, 1.3, 1.6), "geometric": (math.exp(-0.2), math.exp(0.3))}
_CLIPS = [Clip(low=0.2, high=0.3, cap=1.6), Clip(kind="weight", low=0.2, high=0.3), Clip(kind="soft"),
          Clip(kind="geometric", low=0.2, high=0.3), Clip(kind="gamma"), Clip(kind="log"), Clip(kind="none")]
POLICY = [
    *(Formula(o.importance, "logp, old_logp, mask: NT", {"ratio": ratio})
      for ratio in ("token", "sequence", "sequence_sum")),
    *(Formula(o.importance, "logp, old_logp, mask: NT", {"ratio": ratio}, stopped="old_logp",
              slope=lambda x, at: x.logp) for ratio in ("none", "sequence_token")),
    *(Formula(o.clipped_gain, "log_ratio, logp, advantage, mask: NT", {"clip": clip},
              stopped={"weight": "log_ratio", "gamma": "log_ratio", "log": "log_ratio"}.get(clip.kind, "logp"),
              kinks=lambda x, clip=clip: torch.stack([x.advantage, *(x.log_ratio - math.log(edge)
                                                                     for edge in _EDGES.get(clip.kind, ()))]),
              exposed="log_ratio logp advantage", bare=True) for clip in _CLIPS),
    Formula(o.gamma_weight, "log_ratio, advantage: NT", {"clip": Clip(kind="gamma")}, stopped="log_ratio advantage"),
    *(Formula(o.clipped_tokens, "log_ratio, advantage: NT", {"clip": clip}, stopped="log_ratio advantage")
      for clip in _CLIPS[:4]),
    *(Formula(o.gate_keep, "logp, start_logp, advantage, mask: NT", {"gate": Gate(kind=kind, low=0.1, high=0.2)},
              stopped="logp start_logp advantage") for kind in ("tv", "binary_kl", "answer")),
    *(Formula(o.mismatch_weight, "old_logp, sampled_logp, mask: NT", {"mismatch": Mismatch(**choice)},
              stopped="old_logp sampled_logp")
      for choice in ({"kind": "truncate", "low": 0.5}, {"kind": "truncate", "level": "sequence"},
                     {"kind": "mask", "level": "geometric"}, {"kind": "mask", "level": "sequence"},
                     {"kind": "mask", "statistic": "binary_kl", "unit": "sequence", "high": 0.1},
                     {"kind": "mask", "statistic": "tv", "unit": "geometric", "high": 0.1})),
    *(Formula(o.proximal_penalty, "moved, mask: NT", {"estimator": estimator, "level": level},
              kinks=lambda x: torch.cat([x.moved, _total(x.moved, x.mask)[:, None]], 1))
      for estimator in ("k2", "k3", "abs") for level in ("token", "sequence")),
    Formula(o.policy_loss, "logp, old_logp, advantage, mask, ref_logp, sampled_logp, entropy: NT",
            {"objective": o.Objective(kl=Kl(where="loss", beta=0.1, corrected=True), entropy=Entropy(weight=0.1),
                                      mismatch=Mismatch(kind="truncate"), clip=Clip(kind="soft"))},
            stopped="old_logp advantage ref_logp sampled_logp"),
    Formula(o.policy_loss, "logp, old_logp, advantage, mask, a/mask, b/mask: NT",
            {"objective": o.Objective(focus=Focus(kind="entropy", share=0.3), clip=Clip(kind="none"),
                                      proximal=Proximal(estimator="abs", weight=0.2, share=0.5))},
            stopped="old_logp advantage", kinks=lambda x: x.logp - x.old_logp,
            call=lambda a, b, **rest: o.policy_loss(**rest, chosen=Chosen(a, b))),
    *(Formula(o.chosen_tokens, "logp, advantage, mask, entropy, draws: NT",
              {"objective": o.Objective(focus=focus, proximal=Proximal(estimator="k2", weight=1.0, share=0.3))},
              stopped="logp advantage entropy", coupled="all")
      for focus in (Focus(kind="entropy", share=0.4), Focus(kind="covariance", share=0.3, low=0.1, high=3.0))),
    Formula(o.top_entropy, "entropy, mask: NT", {"share": 0.4}, stopped="entropy", coupled="all"),
    Formula(o.covariance, "logp, advantage, mask: NT", stopped="logp advantage", coupled="all"),
    Formula(o.top_covariance, "logp, advantage, mask: NT", {"share": 0.3}, stopped="logp advantage", coupled="all"),
    Formula(o.drawn_covariance, "logp, advantage, mask, draws: NT", {"share": 0.3, "low": 0.1, "high": 3.0},
            stopped="logp advantage", coupled="all"),
]

PAIRS = [
    *(Formula(f, PAIR, {"beta": 0.3}) for f in (o.dpo, o.ipo, o.apo_zero, o.apo_down, o.nca, o.bco_pair, o.mpo,
                                                o.cal_dpo, o.sppo_hard)),
    *(Formula(f, PAIR, {"beta": 0.3, "label_smoothing": 0.1}) for f in (o.cdpo, o.robust, o.exo)),
    Formula(o.soft_dpo, PAIR + "; probability: N", {"beta": 0.3}),
    Formula(o.hinge, PAIR, {"beta": 0.3}, kinks=lambda x: 1 - _h(x)),
    Formula(o.discopop, PAIR, {"beta": 0.3}),
    Formula(o.odpo, PAIR + "; offset: N", {"beta": 0.3}),
    Formula(o.odpo_offset, "score_gap: N", {"alpha": 0.7}),
    *(Formula(f, log_ratio, {"divergence": name} | extra | beta)
      for f, log_ratio, beta in ((o.divergence_link, "log_ratio: N", {}), (o.f_dpo, PAIR, {"beta": 0.3}))
      for name, extra in (("reverse_kl", {}), ("forward_kl", {}), ("js", {}), ("alpha", {"alpha": 0.4}))),
    *(Formula(f, PAIR, {"beta": 0.3, "label_smoothing": 0.1}, coupled="all", kinks=lambda x: _spread(_sides(x)),
              call=lambda f=f, **x: _summed(*f(**x))) for f in (o.aot, o.aot_unpaired)),
    *(Formula(f, PAIR + LENGTHS, {"beta": 0.3}) for f in (o.dpo_norm, o.ipo_norm)),
    Formula(o.rdpo, PAIR + LENGTHS, {"beta": 0.3, "alpha": 0.2}),
    Formula(o.dpop, PAIR, {"beta": 0.3, "penalty": 3.0}, kinks=lambda x: x.ref_chosen - x.chosen),
    Formula(o.xpo, PAIR + "; drawn_by_reference: N", {"beta": 0.3, "alpha": 0.1}),
    *(Formula(f, FREE + LENGTHS, {"beta": 0.3}) for f in (o.orpo, o.cpo_ipo)),
    Formula(o.simpo, FREE + LENGTHS, {"beta": 2.0, "gamma": 0.4, "label_smoothing": 0.1}),
    Formula(o.alphapo, FREE + LENGTHS, {"beta": 2.0, "gamma": 0.4, "alpha": 0.25}),
    Formula(o.cpo, FREE, {"beta": 0.3, "label_smoothing": 0.1}),
    Formula(o.slic, FREE, {"beta": 0.3}, kinks=lambda x: 1 - 0.3 * (x.chosen - x.rejected)),
    Formula(o.tpo, "gold, chosen, rejected: N; gold_length: N", {"beta": 0.3}),
    Formula(o.in_order, "first, second: N; first_wins: N"),
]

PREFERENCES = [
    Formula(o.desensitised, "logp, mask: NT; other_length: N", {"alpha": 0.4}),
    Formula(o.kto_reference_point, "logp, ref_logp: N", stopped="logp ref_logp", coupled="all"),
    *(Formula(o.kto, "logp, ref_logp: N; desirable: N; reference_point/share: ", {"beta": 0.3} | weight)
      for weight in ({}, {"desirable_weight": 1.4, "undesirable_weight": 0.7})),
    Formula(o.apo_zero_unpaired, "logp, ref_logp: N; desirable: N", {"beta": 0.3}),
    Formula(o.bco, "logp, ref_logp: N; desirable: N; shift/share: ", {"beta": 0.3}),
    Formula(o.sppo, "logp, ref_logp: N; win_rate: N", {"beta": 0.3}),
    Formula(o.nash_md, "logp, ref_logp, mask: NT; win_rate/reward: N", {"beta": 0.3}, stopped="ref_logp win_rate",
            slope=lambda x, at: -(at.win_rate - 0.5 - 0.3 * _total(at.logp - at.ref_logp, at.mask))
            * _total(x.logp, at.mask)),
    Formula(peers.trl_nash_md, "logp, ref_logp, mask: NT; win_rate/reward: N", {"beta": 0.3},
            stopped="ref_logp win_rate",
            slope=lambda x, at: _total((0.3 * (at.logp - at.ref_logp) - at.win_rate[:, None] + 0.5) * x.logp, at.mask)),
    Formula(o.bond, "logp, ref_logp, quantile, best_logp: N", {"n": 4, "baseline": -0.5}, stopped="ref_logp quantile",
            slope=lambda x, at: -0.5 * x.best_logp
            - 0.5 * (3 * (at.quantile + 0.5) - at.logp + at.ref_logp) * x.logp),
    Formula(o.quantile_reward, "reward: N; anchor_reward: NK", stopped="reward anchor_reward"),
    Formula(o.dpo_ranking, "logp, ref_logp, mask/prefix: NT", {"beta": 0.3}, pads="right"),
    Formula(o.rrhf, "logp, length, reward, mask: NT", stopped="reward",
            kinks=lambda x: _spread(x.logp / x.length)),
    Formula(o.wpo_weights, "logp, log_sum_sq, mask: NT", stopped="logp log_sum_sq"),
    Formula(o.moved_reference, "reference/score, policy/score: DE", {"share": 0.6}, stopped="reference policy"),
    Formula(o.mixture_logits, "logits, ref_logits: NTV", {"share": 0.3}),
    Formula(o.judge_label, "logp_first, logp_second: N"),
    *(Formula(f, "gap, gap_swapped: N") for f in (o.swap_average, o.swap_logit_average)),
    Formula(o.position_biased, "gap, gap_swapped: N", stopped="gap gap_swapped"),
    Formula(o.clamped_label, "probability/score: N", kinks=lambda x: (x.probability - 0.5).abs() - 0.1),
    Formula(o.expected_rating, "logp: NV"),
    Formula(o.keep_best, "reward, group: N", {"k": 1}, stopped="reward", coupled="group"),
    Formula(o.keep_overall, "reward: N", {"k": 2}, stopped="reward", coupled="all"),
    Formula(o.keep_above, "reward: N", {"threshold": 0.1}, stopped="reward"),
    Formula(o.reward_weighted, "reward, group: N", {"temperature": 0.5}, coupled="group"),
    Formula(o.rso_acceptance, "reward, group: N", {"beta": 0.5}, coupled="group"),
]

SELECTION = [
    Formula(o.best_of_n, "score/reward, mask: NT", stopped="score", pads="right"),
    *(Formula(f, "p/simplex, reward: NV", {"n": 3}, stopped="reward") for f in (o.best_of_n_policy, o.best_of_n_kl)),
    Formula(o.best_of_n_value, "proxy, gold/reward: NV", {"n": 2}, stopped="proxy"),
    *(Formula(f, "right/length: N", {"n": 6, "k": 3}) for f in (o.unbiased_pass_at_k, o.pass_hat_k)),
    *(Formula(o.majority_at_k, "answers, mask: NT; truth: N", {"k": 3, "ties": ties}, pads="")
      for ties in ("share", "first")),
    Formula(o.weighted_vote, "answers, weight/share, mask: NT", pads="right"),
    Formula(o.win_probability, "gap: N"),
    Formula(o.elo_points, "score: N"),
    *(Formula(f, "distance: N; alpha, beta: ", call=lambda distance, f=f, **law: f(distance, o.Law(**law)))
      for f in (o.gold_best_of_n, o.gold_rl)),
    Formula(o.coverage, "k/length: N; alpha, beta: ", call=lambda k, alpha, beta: o.coverage(k, o.Law(-alpha, -beta))),
    *(Formula(f, "alpha, beta: ", call=lambda f=f, **law: f(o.Law(**law))) for f in (o.peak_best_of_n, o.peak_rl)),
    *(Formula(f, "distance: N; gold/reward: N", coupled="all") for f in (o.fit_best_of_n, o.fit_rl)),
    Formula(o.fit_coverage, "k/length, share/odds: N", coupled="all"),
    Formula(o.scale_rl, "compute/positive: N; exponent, midpoint: ", {"start": 0.1},
            call=lambda compute, start, **g: o.scale_rl(compute, o.Growth(torch.tensor(0.9), **g), start)),
    Formula(o.step_size, "direction/positive, curved/positive: N", {"delta": 0.01}, coupled="all"),
]

PEERS = [
    Formula(peers.keep_lone, "advantage, reward, group: N", coupled="group"),
    *(Formula(f, "reward, group: N", coupled=coupled) for f, coupled in (
        (peers.verl_zscore, "group"), (peers.verl_center_live, "all"), (peers.verl_pass_at_k, "group"))),
    Formula(peers.verl_optimal_token, "token_reward, mask: NT; group: N; old_logp, sum_sq: NT", stopped="old_logp",
            coupled="group"),
    Formula(peers.verl_moments, "x/reward, mask: NT", coupled="all"),
    *(Formula(f, "x/reward, mask: NT", {"shift": shift}, coupled="all", bare=True)
      for f in (peers.verl_whiten, peers.trl_whiten) for shift in (True, False)),
    Formula(peers.openrlhf_whiten, "x/reward, mask: NT", coupled="all"),
    Formula(peers.openrlhf_whiten_rows, "x/reward, mask: NT"),
    *(Formula(peers.verl_kl, "log_ratio: NT", {"estimator": name},
              kinks=lambda x: torch.stack([x.log_ratio, o.k3(x.log_ratio) - 10]),
              slope=(lambda x, at: x.log_ratio.square() / 2) if name.endswith("+") else None) for name in ESTIMATORS),
    Formula(peers.openrlhf_kl, "log_ratio: NT", {"estimator": "k3"}, kinks=lambda x: o.k3(x.log_ratio) - 10),
    Formula(peers.openrlhf_unbiased_kl, "log_ratio, drift: NT", {"estimator": "k1"}, stopped="drift",
            slope=lambda x, at: at.drift.exp() * x.log_ratio.square() / 2),
    Formula(peers.verl_masked_mean, "values, mask: NT", coupled="all"),
    *(Formula(peers.trl_policy_weights, "mask: NT", {"loss_type": name, "max_completion_length": 9}, coupled="all")
      for name in ("grpo", "bnpo", "dr_grpo", "luspo", "dapo")),
    *(Formula(peers.verl_weights, "mask: NT", {"loss_agg_mode": name, "loss_scale_factor": 9.0}, coupled=coupled)
      for name, coupled in (("token-mean", "all"), ("token-sum", ""), ("seq-mean-token-mean", "all"),
                            ("seq-mean-token-sum", "all"), ("seq-mean-token-sum-norm", "all"))),
    Formula(peers.trl_top_entropy, "entropy, mask: NT", {"share": 0.4}, stopped="entropy", coupled="all"),
    Formula(peers.sampler_of, "old_logp: NT; weight/positive: NT"),
    Formula(peers.spread_over_tokens, "logp: N; mask: NT"),
    Formula(peers.openrlhf_token_rewards, "score/reward: N; kl, mask: NT", {"beta": 0.2}, stopped="kl", exposed="kl"),
    Formula(peers.openrlhf_gae, "rewards, values, mask: NT", {"gamma": 0.9, "lam": 0.7}, stopped="rewards values"),
    Formula(peers.openrlhf_rewards_to_go, "rewards, mask: NT", {"gamma": 0.9}),
]
# fmt: on
TABLE = TOKENS + DISTILLATION + REWARDS + RETURNS + GROUP + ESTIMATES + POLICY + PAIRS + PREFERENCES + SELECTION + PEERS

EXEMPT = {
    **dict.fromkeys((o.check_shapes, o.detached), "helpers, no formulas"),
    **dict.fromkeys((o.adaptive_beta, o.doubling_beta, o.next_beta, o.next_proximal, o.next_entropy,
                     o.best_of_n_bound, o.moments_std, peers.capped_weight), "numbers in, numbers out"),
    **dict.fromkeys((o.update_moments, o.running_baseline, o.elo_update), "a state after one more batch or game"),
    **dict.fromkeys((o.predicting, o.best_and_worst), "places of rows or tokens, as many as there are"),
    **dict.fromkeys((o.fisher_product, o.score_product, o.conjugate_gradient, o.natural_step, o.line_search),
                    "take functions of one parameter vector: test_trust_region"),
    **dict.fromkeys((o.bradley_terry_ratings, o.length_controlled_win_rate, o.fit_scale_rl),
                    "fits by search: test_ratings, test_scaling"),
    token_pull: "walks all presets in test_pull",
}  # fmt: skip
"""Public functions that these properties do not fit, and why."""


def _sides(x):
    """What AOT sorts, for both forms."""
    return torch.stack([x.chosen - x.rejected, x.ref_chosen - x.ref_rejected, x.chosen - x.ref_chosen,
                        x.rejected - x.ref_rejected])  # fmt: skip


def _summed(loss, metrics):
    """Losses in sorted order belong to no row: only their sum does not depend on the order of rows."""
    return loss.sum(), metrics
