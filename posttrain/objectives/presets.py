"""Methods as rows of one table: each name stands for a whole `Objective`, with the values its authors print.

Nothing else in the library knows these names. The comment above a row begins with its paper, which `posttrain methods`
prints. A value that a paper leaves open is said to be so, and is then GRPO's. Sampling sizes, learning rates and the
shaping of rewards (DAPO's overlong penalty) are not part of an objective; section 24 of the explainer compares the rows
on one task.
"""

from dataclasses import replace

from posttrain.objectives.average import Average
from posttrain.objectives.gates import Gate
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.objective import Objective
from posttrain.objectives.regularizers import Entropy, Kl, Proximal
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.token_masks import Focus

PRESETS: dict[str, Objective] = {
    # Williams 1992, with the KL charge of RLHF; beta from Ahmadian et al. 2024, who try 0.03 to 0.1.
    "reinforce": Objective(
        advantage="return",
        ratio="none",
        clip=Clip(kind="none"),
        average=Average("sum"),
        kl=Kl(where="reward", estimator="k1", beta=0.03),
    ),
    # Ahmadian et al. 2024 (arXiv 2402.14740): 2 or 4 answers per prompt.
    "rloo": Objective(
        advantage="leave_one_out",
        ratio="none",
        clip=Clip(kind="none"),
        average=Average("sum"),
        kl=Kl(where="reward", estimator="k1", beta=0.03),
    ),
    # Hu et al. 2025 (arXiv 2501.03262); beta as in OpenRLHF, the paper's own code.
    "reinforce_pp": Objective(
        advantage="batch_whiten",
        average=Average("token"),
        kl=Kl(where="reward", estimator="k1", beta=0.01),
    ),
    "reinforce_pp_baseline": Objective(
        advantage="center_then_whiten",
        average=Average("token"),
        kl=Kl(where="loss", estimator="k2", beta=0.01),
    ),
    # Ouyang et al. 2022 (arXiv 2203.02155) and its reproductions; beta as in Stiennon et al. 2020 and TRL.
    "ppo": Objective(
        advantage="gae",
        average=Average("token"),
        kl=Kl(where="reward", estimator="k1", beta=0.05),
    ),
    # Shao et al. 2024 (arXiv 2402.03300), section 4.2.
    "grpo": Objective(
        advantage="zscore",
        average=Average("sequence"),
        kl=Kl(where="loss", estimator="k3", beta=0.04),
    ),
    # Liu et al. 2025 (arXiv 2503.20783): 3000 is their answer budget; set it to the one you sample with.
    "dr_grpo": Objective(advantage="center", average=Average("constant", horizon=3000)),
    # Yu et al. 2025 (arXiv 2503.14476).
    "dapo": Objective(
        advantage="zscore",
        clip=Clip(low=0.2, high=0.28),
        average=Average("token"),
        keep="mixed",
    ),
    # Zheng et al. 2025 (arXiv 2507.18071), section 5.1.
    "gspo": Objective(
        advantage="zscore",
        ratio="sequence",
        clip=Clip(low=3e-4, high=4e-4),
        average=Average("sequence"),
    ),
    # MiniMax 2025 (arXiv 2506.13585) prints no bound; a largest weight of 5 is ScaleRL's (arXiv 2510.13786).
    "cispo": Objective(
        advantage="zscore",
        clip=Clip(kind="weight", low=None, high=4.0),
        average=Average("token"),
    ),
    # Gao et al. 2025 (arXiv 2511.20347).
    "sapo": Objective(
        advantage="zscore",
        clip=Clip(kind="soft", tau=1.0, tau_negative=1.05),
        average=Average("sequence"),
    ),
    # Tajwar et al. 2026 (arXiv 2602.02710): on-policy, rewards 0 and 1.
    "maxrl": Objective(
        advantage="mean_ratio",
        ratio="none",
        clip=Clip(kind="none"),
        average=Average("token"),
    ),
}
"""Name -> objective: first the best known, oldest family first, then their relatives by what they change."""

_GRPO = Objective()
"""GRPO without its leash, from which many of the following differ by a choice or two."""
_DAPO = PRESETS["dapo"]

# What is made of the rewards ------------------------------------------------------------------------------------------
PRESETS |= {
    # Li et al. 2023 (arXiv 2310.10505): the reward of one greedy answer per prompt is subtracted; beta is RLOO's.
    "remax": Objective(
        advantage="greedy",
        ratio="none",
        clip=Clip(kind="none"),
        average=Average("sum"),
        kl=Kl(where="reward", estimator="k1", beta=0.03),
    ),
    # Hao et al. 2025 (arXiv 2505.23585): exactly on-policy, no KL; tokens are summed, as in its derivation.
    "opo": Objective(advantage="length_weighted", ratio="none", clip=Clip(kind="none"), average=Average("sum")),
    # Chu et al. 2025 (arXiv 2504.02546): -A log π, no ratio, no KL.
    "gpg": Objective(advantage="center_live", ratio="none", clip=Clip(kind="log"), average=Average("token")),
    # Liu et al. 2025 (arXiv 2508.08221): the group's mean, the batch's standard deviation, token-level loss.
    "lite_ppo": Objective(advantage="center_then_scale", average=Average("token")),
    # NVIDIA 2026 (arXiv 2601.05242): several rewards, each scaled in its group before they are added.
    "gdpo": replace(_GRPO, advantage="decoupled"),
    # Walder and Karkhanis 2025 (arXiv 2505.15201): an unbiased gradient of pass@k; k is a choice.
    "pass_at_k": replace(_GRPO, advantage="pass_at_k", k=4),
    # Chen et al. 2025 (arXiv 2508.10751): the same aim with an advantage in closed form, on DAPO's loss.
    "pass_at_k_training": replace(_DAPO, advantage="pass_at_k_zscore", k=4, keep="all"),
    # OTB 2026 (arXiv 2602.07078): a baseline for every place in the answers.
    "otb": Objective(advantage="optimal_token", average=Average("token")),
    # NVIDIA 2026, as OpenRLHF runs it: one answer per prompt, whole answers dropped by their mean distance.
    "flash_reinforce": Objective(
        advantage="batch_center",
        ratio="none",
        clip=Clip(kind="none"),
        mismatch=Mismatch(kind="mask", statistic="binary_kl", unit="geometric", high=5e-3),
    ),
}

# How far the policy may move ------------------------------------------------------------------------------------------
PRESETS |= {
    # Schulman et al. 2017 (arXiv 1707.06347), section 4: they try targets of 0.003 to 0.03; beta starts at 1.
    "ppo_penalty": Objective(
        advantage="gae",
        clip=Clip(kind="none"),
        average=Average("token"),
        proximal=Proximal(estimator="k3", weight=1.0, target=0.01),
    ),
    # Ye et al. 2019 (arXiv 1912.09729): 3 is their cap, and verl's.
    "ppo_dual_clip": replace(PRESETS["ppo"], clip=Clip(cap=3.0)),
    # Hilton et al. 2021 (arXiv 2110.00641): clip around the learner, weigh by learner over sampler, uncut.
    "decoupled_ppo": Objective(
        advantage="gae", average=Average("token"), mismatch=Mismatch(kind="truncate", high=None)
    ),
    # Yue et al. 2025 (arXiv 2504.05118), the policy's part; critic and second term are the loop's.
    "vapo": Objective(advantage="gae", clip=Clip(low=0.2, high=0.28), average=Average("token")),
    # Prime Intellect 2025 (arXiv 2505.07291), section 4.1: a cap of 4 under negative advantages.
    "intellect_2": Objective(
        clip=Clip(cap=4.0), average=Average("token"), kl=Kl(where="loss", estimator="k3", beta=0.001)
    ),
    # DeepSeek-AI 2025 (arXiv 2501.12948, Nature): clip 10 in R1's first RL stage, so no lower edge.
    "r1": Objective(clip=Clip(low=10.0, high=10.0), kl=Kl(where="loss", estimator="k3", beta=0.001)),
    # Zheng et al. 2025 (arXiv 2507.18071), eq. 14: as GSPO, but tokens may have advantages of their own.
    "gspo_token": replace(PRESETS["gspo"], ratio="sequence_token"),
    # Zhao et al. 2025 (arXiv 2507.20673): token ratios between e^-0.4 and e^0.4.
    "gmpo": Objective(clip=Clip(kind="geometric", low=0.4, high=0.4)),
    # LUSPO 2026 (arXiv 2602.05261): GSPO times the length of the answer.
    "luspo": Objective(ratio="sequence", clip=Clip(low=2e-3, high=2.5e-3), average=Average("sum")),
    # VESPO 2026 (arXiv 2602.10693).
    "vespo": Objective(ratio="sequence_sum", clip=Clip(kind="gamma"), average=Average("token")),
    # Qi et al. 2026 (arXiv 2602.04879): measured from the sampler; thresholds of the scripts they released.
    "dppo": Objective(
        old="sampler", clip=Clip(kind="none"), gate=Gate(kind="tv", low=0.15, high=0.15), average=Average("token")
    ),
    "dppo_kl": Objective(
        old="sampler",
        clip=Clip(kind="none"),
        gate=Gate(kind="binary_kl", low=0.05, high=0.05),
        average=Average("token"),
    ),
    # prime-rl's default loss in 2026: DPPO's gate, and 1e-3 · (log ρ)².
    "prime_rl": Objective(
        advantage="center",
        old="sampler",
        clip=Clip(kind="none"),
        gate=Gate(kind="tv", low=0.2, high=0.2),
        average=Average("token"),
        proximal=Proximal(estimator="k2", weight=2e-3),
    ),
    # Richemond et al. 2024 (arXiv 2405.19107), token by token as in verl, whose beta this is.
    "dro": Objective(
        ratio="none",
        clip=Clip(kind="log"),
        average=Average("token"),
        proximal=Proximal(estimator="k2", weight=0.1),
    ),
    # Kimi team 2025 (arXiv 2501.12599), section 2.3: mirror descent on whole answers; its tau is not printed.
    "kimi": Objective(
        advantage="center",
        ratio="none",
        clip=Clip(kind="log"),
        average=Average("sum"),
        proximal=Proximal(estimator="k2", level="sequence", weight=0.1),
    ),
}

# Which tokens learn, and what the sampler was; recipes ----------------------------------------------------------------
PRESETS |= {
    # Cui et al. 2025 (arXiv 2505.22617), the released scripts: the ratio clip is as wide as 1.
    "clip_cov": Objective(
        clip=Clip(low=1.0, high=1.0), average=Average("token"), focus=Focus(kind="covariance", share=2e-4)
    ),
    # The same paper: 2e-3 for 7B models, 2e-4 for 32B.
    "kl_cov": Objective(
        clip=Clip(kind="none"),
        average=Average("token"),
        proximal=Proximal(estimator="abs", weight=1.0, share=2e-3),
    ),
    # Wang et al. 2025 (arXiv 2506.01939): DAPO on a fifth of the tokens.
    "high_entropy": replace(_DAPO, focus=Focus(kind="entropy", share=0.2)),
    # He et al. 2025 (arXiv 2505.22312): target 0.2 nats, steps of 0.005 from 0.
    "skywork_or1": Objective(average=Average("token"), keep="mixed", entropy=Entropy(target=0.2)),
    # Yao et al. 2025 (blog), on DAPO as there, with C = 2.
    "tis": replace(_DAPO, mismatch=Mismatch(kind="truncate", high=2.0)),
    # Liu, Li et al. 2025 (blog "When Speed Kills Stability"): the product over the answer, masked above 2.
    "mis": replace(_DAPO, mismatch=Mismatch(kind="mask", level="sequence", high=2.0)),
    # Ling team 2025 (arXiv 2510.18855): tokens outside [0.5, 5] are dropped.
    "icepop": replace(_GRPO, mismatch=Mismatch(kind="mask", low=0.5, high=5.0)),
    # DeepSeek-AI 2025 (arXiv 2512.02556) prints no values: beta is R1's, the mask's threshold TRL's.
    "deepseek_v32": Objective(
        gate=Gate(kind="answer", low=0.5, against="sampler"),
        kl=Kl(where="loss", estimator="k3", beta=0.001, corrected=True),
    ),
    # Khatri et al. 2025 (arXiv 2510.13786): CISPO, the batch's scale, every prompt weighs the same.
    "scale_rl": replace(PRESETS["cispo"], advantage="center_then_scale", average=Average("prompt"), keep="mixed"),
    # Olmo team 2025 (arXiv 2512.13961): no KL, no scale, weights cut at 2; the upper clip is DAPO's.
    "olmo3": replace(_DAPO, advantage="center", mismatch=Mismatch(kind="truncate", high=2.0)),
}
