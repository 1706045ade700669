"""Losses that learn from preferences without a reward model, a file per kind.

`pairs` see the gap between two answers, `lengths` their lengths, `anchored` each answer by itself, `transport` the
whole batch; `divergences` changes the leash, `reference_free` has none. `unpaired` takes single verdicts, `rankings`
more than two answers, `games` what the policy writes itself. `weights`, `reference`, `labels` and `selected` make what
goes into a loss. `menu` lists the losses that can be trained from stored pairs.
"""

from posttrain.objectives.preference.anchored import apo_down, apo_zero, bco_pair, cal_dpo, dpop, mpo, nca
from posttrain.objectives.preference.divergences import Divergence, divergence_link, f_dpo
from posttrain.objectives.preference.games import best_and_worst, in_order, nash_md, sppo, sppo_hard, xpo
from posttrain.objectives.preference.labels import (
    clamped_label,
    expected_rating,
    judge_label,
    position_biased,
    swap_average,
    swap_logit_average,
)
from posttrain.objectives.preference.lengths import desensitised, dpo_norm, ipo_norm, rdpo
from posttrain.objectives.preference.menu import MENU, Formula, PreferenceLoss
from posttrain.objectives.preference.pairs import (
    cdpo,
    discopop,
    dpo,
    exo,
    hinge,
    implicit_reward,
    ipo,
    odpo,
    odpo_offset,
    robust,
    soft_dpo,
)
from posttrain.objectives.preference.rankings import dpo_ranking, rrhf, tpo
from posttrain.objectives.preference.reference import mixture_logits, moved_reference
from posttrain.objectives.preference.reference_free import alphapo, cpo, cpo_ipo, orpo, simpo, slic
from posttrain.objectives.preference.selected import (
    bond,
    keep_above,
    keep_best,
    keep_overall,
    quantile_reward,
    reward_weighted,
    rso_acceptance,
)
from posttrain.objectives.preference.transport import aot, aot_unpaired
from posttrain.objectives.preference.unpaired import (
    apo_zero_unpaired,
    bco,
    kto,
    kto_reference_point,
)
from posttrain.objectives.preference.weights import wpo_weights

__all__ = [
    "MENU",
    "Divergence",
    "Formula",
    "PreferenceLoss",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "best_and_worst",
    "bond",
    "cal_dpo",
    "cdpo",
    "clamped_label",
    "cpo",
    "cpo_ipo",
    "desensitised",
    "discopop",
    "divergence_link",
    "dpo",
    "dpo_norm",
    "dpo_ranking",
    "dpop",
    "exo",
    "expected_rating",
    "f_dpo",
    "hinge",
    "implicit_reward",
    "in_order",
    "ipo",
    "ipo_norm",
    "judge_label",
    "keep_above",
    "keep_best",
    "keep_overall",
    "kto",
    "kto_reference_point",
    "mixture_logits",
    "moved_reference",
    "mpo",
    "nash_md",
    "nca",
    "odpo",
    "odpo_offset",
    "orpo",
    "position_biased",
    "quantile_reward",
    "rdpo",
    "reward_weighted",
    "robust",
    "rrhf",
    "rso_acceptance",
    "simpo",
    "slic",
    "soft_dpo",
    "sppo",
    "sppo_hard",
    "swap_average",
    "swap_logit_average",
    "tpo",
    "wpo_weights",
    "xpo",
]
