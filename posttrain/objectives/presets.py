"""Methods as rows of one table: each name stands for a whole `Objective`, with the values its authors print.

Nothing else in the library knows these names. A value that a paper leaves open is said to be so. Sampling sizes,
learning rates and the shaping of rewards (DAPO's overlong penalty) are not part of an objective; section 24 of the
explainer compares the rows on one task.
"""

from posttrain.objectives.average import Average
from posttrain.objectives.policy import Kl, Objective
from posttrain.objectives.surrogate import Clip

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
"""Name -> objective, oldest family first."""
