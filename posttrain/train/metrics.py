"""The glossary of metrics: every number that a run logs, with its formula, what healthy and what alarming looks like.

`Run.log` refuses a name that is not listed here, so a curve can always be looked up. Inside the library a metric
travels as (sum, count): sums add over micro-batches, minibatches and machines, and `mean` divides once, at the end.
Names ending in `_max` are the exception: they travel as (value, 1), and the larger one wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from posttrain.errors import nearest

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, "tuple[float | Tensor, float | Tensor]"]


@dataclass(frozen=True)
class Metric:
    """One row of the glossary."""

    name: str
    """As it stands in metrics.jsonl. A trailing * stands for any ending (`eval_*`)."""
    formula: str
    meaning: str
    healthy: str
    alarm: str
    section: int
    """The section of the explainer that tells its story."""
    better: Literal["up", "down", ""] = ""
    """Which direction `run.best` looks for; empty where more is neither good nor bad."""


# fmt: off
_ROWS = (
    # -- every loop ---------------------------------------------------------------------------------------------------
    Metric("loss", "Σ w · term", "what the optimizer minimised, all terms together",
           "falls in SFT, preference and reward-model training; hovers near 0 in policy gradients, where it is a "
           "surrogate and says little", "NaN; or rises for many steps", 5, "down"),
    Metric("tokens", "Σ mask", "tokens that carried a loss in this step", "steady",
           "0: everything is masked out", 5),
    Metric("grad_norm", "‖∇‖₂ before clipping", "length of the whole gradient", "steady, around 0.1 to 10",
           "0: nothing is learned; spikes: lower the learning rate or look at the samples of that step", 5),
    Metric("lr", "schedule(step)", "learning rate of the step", "as configured", "0 too early", 5),
    Metric("epoch", "cursor / rows", "passes over the data so far", "1 to 4 for demonstrations",
           "many: the model memorises its data", 5),
    Metric("lag", "version now - version that sampled", "optimizer steps between sampling and learning", "0 to 4",
           "grows: the sampler starves", 26, "down"),
    # -- supervised ---------------------------------------------------------------------------------------------------
    Metric("nll", "-mean log π(token)", "cross-entropy per learned token, in nats", "falls, flattens",
           "falls on training data while eval_nll rises: memorising", 2, "down"),
    Metric("token_accuracy", "mean [argmax = token]", "learned tokens that greedy decoding would write", "rises",
           "near 1 on training data early: duplicates or leaks", 5, "up"),
    Metric("truncated_share", "rows cut / rows", "rows cut to fit the context", "near 0",
           "high: answers lose their stop token; raise max_len", 5, "down"),
    Metric("padding_share", "pad / (N · T)", "share of the batch that is padding", "below 0.5", "near 1: wasted time",
           5, "down"),
    # -- entropy, KL --------------------------------------------------------------------------------------------------
    Metric("entropy", "mean -Σ π log π", "how undecided the policy is, nats per chosen token", "falls slowly",
           "collapses to 0 (no exploration) or climbs without limit (noise)", 24),
    Metric("kl_ref_k1", "mean log π/π_ref", "estimate k1 of kl(policy ‖ reference) per token", "grows slowly from 0",
           "negative for long: samples are not the policy's", 2),
    Metric("kl_ref_k2", "mean (log π/π_ref)² / 2", "estimate k2 of the same: low variance, biased", "near k3",
           "far from k3: ratios are large", 2),
    Metric("kl_ref_k3", "mean π_ref/π - 1 - log π_ref/π", "estimate k3: never negative, unbiased on-policy",
           "0 at the start, then slowly up", "jumps: reward hacking or too large a step", 2, "down"),
    Metric("kl_ref", "mean Σ_v π log π/π_ref", "exact kl(policy ‖ reference) per token, summed over the vocabulary",
           "0 at the start, then slowly up", "jumps", 2, "down"),
    Metric("kl_old", "mean k3(π ‖ π_old)", "how far this step has moved from the policy that began it", "below 0.02",
           "above 0.1: too many epochs or too high a learning rate", 13, "down"),
    Metric("kl_ref_answer", "mean Σ_t log π/π_ref", "estimate k1 of kl(policy ‖ reference) per whole answer: what the "
           "leash's controller steers", "grows from 0, or settles at kl.target", "negative for long, or without end",
           14),
    Metric("kl_beta", "controller", "weight of the KL leash", "settles", "grows without end: the target is too tight",
           14),
    # -- policy gradients ---------------------------------------------------------------------------------------------
    Metric("ratio_mean", "mean π/π_old", "importance ratio per token", "1 within a few percent",
           "off 1 at the first minibatch: old_logp is not the learner's", 13),
    Metric("ratio_max", "max π/π_old", "largest importance ratio", "below 3", "tens: stale or mismatched samples", 13),
    Metric("clip_share", "share of tokens the clip cut", "tokens whose gradient was stopped", "0.01 to 0.2",
           "0 always: clip never works; above 0.4: steps too large", 13),
    Metric("clip_low_share", "share cut at the lower edge", "tokens held from becoming rarer", "small", "large", 24),
    Metric("clip_high_share", "share cut at the upper edge", "tokens held from becoming likelier", "small",
           "large while entropy collapses: raise clip.high", 24),
    Metric("clip_cap_share", "share of tokens at the cap", "unwanted tokens too likely to count in full", "near 0",
           "large: samples are stale, and the cap hides it", 13),
    Metric("gate_cut_share", "share of tokens a gate dropped", "tokens on which the policy has moved far enough",
           "below 0.1", "above 0.4: most of the batch teaches nothing", 24),
    Metric("focus_share", "share of tokens that learn", "tokens picked by entropy or covariance", "as configured",
           "far from the configured share: many ties", 24),
    Metric("proximal", "mean penalty", "how far the step has left the policy that began it, before the weight",
           "small next to advantage_abs", "dominates: nothing is learned", 13),
    Metric("advantage_abs", "mean |A|", "size of the learning signal", "0.3 to 1 after z-scoring",
           "0: no group has differing rewards", 23),
    Metric("advantage_mean", "mean A", "average advantage over learned tokens", "near 0", "far from 0: no baseline",
           12),
    Metric("advantage_std", "std A", "spread of advantages", "near 1 when whitened", "near 0", 12),
    Metric("ptx_nll", "-mean log π(token)", "cross-entropy per token of the pre-training text that PPO-ptx mixes in",
           "stays where it began", "rises: the policy forgets its language", 8, "down"),
    Metric("positive_nll", "-mean log π(token)", "cross-entropy per token of the answers that were right (VAPO)",
           "falls", "near 0 while reward_mean stands still: the policy repeats itself", 24, "down"),
    Metric("policy_loss", "Σ w · surrogate", "the surrogate, whose value is not progress", "near 0", "NaN", 13),
    Metric("kl_loss", "Σ w · β · KL", "the leash's share of the loss", "small next to the reward", "dominates", 14),
    Metric("minibatch_steps", "count", "optimizer steps made from one batch of samples", "as configured",
           "0: the batch was empty", 14),
    # -- rewards ------------------------------------------------------------------------------------------------------
    Metric("reward_mean", "mean r over scored answers", "what the graders say", "rises", "flat from the start: look at "
           "zero_variance_share; rises while eval falls: hacking", 15, "up"),
    Metric("reward_std", "std r", "spread of rewards over the batch", "above 0", "0: no signal", 23),
    Metric("reward_part_*", "mean of one named part", "one component of a weighted reward", "rises",
           "one part rises at the cost of the rest", 15, "up"),
    Metric("reward_shaped", "mean r - β · KL", "reward after the KL penalty", "rises", "falls while reward_mean rises",
           14, "up"),
    Metric("solved_share", "share of prompts with any right answer", "prompts that the group can learn from", "rises",
           "0: tasks too hard", 23, "up"),
    Metric("zero_variance_share", "groups with equal rewards / groups", "prompts that teach a group method nothing",
           "below 0.6", "1: no gradient at all", 23, "down"),
    Metric("abstained_share", "unscored / answers", "answers that no grader could score; left out, never zero",
           "0", "above 0.05: the grader is broken", 22, "down"),
    Metric("failed_share", "failed rollouts / rollouts", "episodes that ended in an error", "0", "above max_failed", 26,
           "down"),
    Metric("length_mean", "mean tokens written", "tokens that the policy chose per answer", "task-dependent",
           "grows with reward flat: length hacking", 15),
    Metric("clipped_at_length_share", "share stopped by the budget", "answers cut off before their end", "below 0.1",
           "1: the stop token was never learned, or max_tokens is too small", 23, "down"),
    Metric("turns_mean", "mean policy turns", "turns per episode", "task-dependent", "at the limit", 26),
    Metric("tool_calls_mean", "mean calls", "tool calls per episode", "task-dependent", "0 when tools are needed", 26),
    Metric("tool_error_share", "failed calls / calls", "calls that the tool refused", "falls", "rises", 26, "down"),
    Metric("groups_kept_share", "kept / sampled", "groups that survived the filter", "above 0.3",
           "near 0: most sampling is thrown away", 24),
    Metric("prompts_drawn", "count", "prompts sampled in this step until the batch was full, or draws ran out",
           "near the batch's prompts", "at draws times prompts: the tasks are all solved, or all too hard", 24, "down"),
    Metric("length_right", "mean tokens of answers of full marks", "tokens per right answer", "as the task asks",
           "see length_wrong", 24),
    Metric("length_wrong", "mean tokens of the other scored answers", "tokens per wrong answer", "near length_right",
           "grows away from length_right: the average punishes long wrong answers too little", 24),
    # -- sampler against learner --------------------------------------------------------------------------------------
    Metric("sampler_gap_mean", "mean |logp_sampler - logp_learner|", "disagreement on the same tokens, same weights",
           "below 1e-4 in one process, below 0.01 across engines", "larger: stale weights or another temperature", 24,
           "down"),
    Metric("sampler_gap_max", "max of the same", "worst token", "below 1e-3 in one process", "above 1", 24, "down"),
    Metric("mismatch_ess", "(Σ w)² / (n · Σ w²)", "effective share of samples after correcting the mismatch",
           "above 0.9", "below 0.5", 24, "up"),
    Metric("mismatch_cut_share", "share of weights truncated or masked", "tokens whose mismatch weight hit the limit",
           "below 0.01", "above 0.1", 24, "down"),
    # -- preferences and reward models --------------------------------------------------------------------------------
    Metric("accuracy", "mean [margin > 0]", "pairs ranked as the annotator did", "from 0.5 up",
           "1 within an epoch: the pairs are told apart by something trivial", 9, "up"),
    Metric("margin", "mean r_w - r_l", "gap between the rewards of chosen and rejected", "grows",
           "grows while logp_chosen falls: likelihood displacement", 16, "up"),
    Metric("reward_chosen", "mean r_w", "(implicit) reward of chosen answers", "rises or stays",
           "falls: chosen answers become unlikely", 16),
    Metric("reward_rejected", "mean r_l", "(implicit) reward of rejected answers", "falls", "falls without limit", 16),
    Metric("logp_chosen", "mean log π(y_w)", "log-probability of whole chosen answers", "steady", "falls steadily", 16),
    Metric("logp_rejected", "mean log π(y_l)", "log-probability of whole rejected answers", "falls",
           "falls without limit", 16),
    Metric("length_chosen", "mean |y_w|", "tokens per chosen answer", "as the data",
           "far from length_rejected: bias", 17),
    Metric("length_rejected", "mean |y_l|", "tokens per rejected answer", "as the data", "see length_chosen", 17),
    Metric("score_mean", "mean r", "output of the reward model", "near 0 when centred", "drifts away", 9),
    Metric("score_std", "std r", "spread of the reward model's output", "grows from 0", "explodes", 9),
    Metric("ensemble_std", "mean std over members", "disagreement of the ensemble", "falls on known text",
           "grows along training: the policy leaves the data", 15, "down"),
    Metric("reference_point", "z0, or mean reward", "what single verdicts are measured against", "grows slowly from 0",
           "jumps: the policy leaves the reference", 17),
    Metric("win_rate", "mean P(y beats y')", "how often the policy's answer beats its opponent's", "rises from 0.5",
           "stays at 0.5: the two cannot be told apart", 17, "up"),
    Metric("good_share", "mean [label good]", "share of positive labels", "as the data", "0 or 1: nothing to learn", 9),
    # -- critic -------------------------------------------------------------------------------------------------------
    Metric("value_loss", "mean (V - target)² / 2", "the critic's error", "falls", "rises steadily", 12, "down"),
    Metric("value_mean", "mean V", "the critic's average guess", "follows the return", "far from return_mean", 12),
    Metric("value_clip_share", "share of clipped values", "values held near their old ones", "below 0.2",
           "above 0.5", 14),
    Metric("return_mean", "mean target", "average value target", "rises", "flat", 12, "up"),
    Metric("explained_variance", "1 - var(target - V) / var(target)", "how much of the return the critic foresees",
           "from 0 towards 1", "negative for long: worse than a constant", 12, "up"),
    # -- control tasks ------------------------------------------------------------------------------------------------
    Metric("episode_return", "mean Σ_t r_t over episodes that ended", "what the environment paid per episode, "
           "undiscounted and in its own units", "rises", "falls after it rose: steps too large, or a learned reward is "
           "being exploited", 11, "up"),
    Metric("episode_length", "mean steps of episodes that ended", "how long episodes are", "task-dependent",
           "at the limit where the task is to finish", 11),
    Metric("env_steps", "count", "steps taken in the environment so far", "grows by a batch per step",
           "grows by less than a batch: rows are lost", 11),
    Metric("kl_trust", "mean kl(old ‖ new)", "how far the policy moved in this step, in nats: exact in TRPO, k3 on the "
           "batch after the last pass in PPO", "at or below the bound", "above it", 13),
    Metric("kl_trust_max", "the same, its largest value where steps are joined", "how far the policy moved at most",
           "at or below the bound", "above it", 13),
    Metric("surrogate_gain", "mean (ρ - 1) A", "what the accepted step promises, in units of whitened advantage",
           "above 0", "0 for many steps: the line search fails", 13, "up"),
    Metric("search_trials", "count", "steps that the line search tried", "1 to 3",
           "all of them: the quadratic model of the KL is poor", 13, "down"),
    Metric("search_failed_share", "steps refused / steps", "steps for which nothing was accepted", "0",
           "1 for many steps: the gradient is noise; larger batches", 13, "down"),
    Metric("fisher_products", "count", "products with the Fisher matrix", "iterations + 1", "1: the gradient is 0", 13),
    Metric("comparisons", "count", "comparisons that a labeller has answered so far", "reaches its budget",
           "0: nothing can be learned", 7),
    Metric("abstained_comparisons", "count", "comparisons that a labeller could not tell, so far", "few",
           "most: clips are too short", 7),
    Metric("predictor_loss", "mean of the comparisons' loss", "error of the learned reward on what its members drew",
           "falls below log 2", "log 2 = 0.69: nothing is learned", 7, "down"),
    Metric("learned_reward", "mean r̂", "mean learned reward per step of the batch, normalised",
           "rises with episode_return", "rises while episode_return falls: the reward's holes are found", 7),
    Metric("reward_correlation", "corr(r̂, r)", "learned against true reward per step of the batch", "above 0.5",
           "near 0 or negative: the reward is about something else", 7, "up"),
    # -- distillation, selection --------------------------------------------------------------------------------------
    Metric("kl_teacher", "mean KL", "distance to the teacher per token, in the configured direction", "falls",
           "rises", 6, "down"),
    Metric("selected_share", "kept answers / sampled", "answers that passed the filter", "0.1 to 0.9",
           "near 0 or 1", 18),
    Metric("selected_prompt_share", "prompts with a kept answer / prompts", "prompts that are learned from",
           "near 1", "near 0: the hard prompts are left out, and stay hard", 18, "up"),
    Metric("selected_reward", "mean r over kept answers", "reward of what is learned", "above reward_mean",
           "equal to reward_mean: the choice selects nothing", 18, "up"),
    Metric("distinct_share", "distinct answers / answers", "how varied the samples of one prompt are", "0.3 to 1",
           "falls towards 1/n: all samples are the same answer", 18),
    # -- evaluation ---------------------------------------------------------------------------------------------------
    Metric("eval_loss", "as loss, held out", "loss on rows that are not trained on", "falls", "rises: overfitting", 5,
           "down"),
    Metric("eval_nll", "as nll, held out", "cross-entropy on held-out rows", "falls", "rises: overfitting", 5, "down"),
    Metric("eval_*", "mean over held-out tasks", "an evaluation during the run", "rises",
           "falls while the training reward rises", 15, "up"),
)
# fmt: on

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
"""The glossary by name."""

HEADLINE = (
    "reward_mean",
    "episode_return",
    "eval_accuracy",
    "eval_reward",
    "nll",
    "loss",
    "accuracy",
    "margin",
    "kl_ref_k3",
    "zero_variance_share",
    "clipped_at_length_share",
    "grad_norm",
)
"""What the progress line shows, in this order, as far as a step has it."""


def lookup(name: str) -> Metric:
    """The glossary's row for a metric, families (`eval_*`) included. Raises KeyError with the nearest known name."""
    if name in METRICS:
        return METRICS[name]
    for row in _ROWS:
        if row.name.endswith("*") and name.startswith(row.name[:-1]) and len(name) > len(row.name) - 1:
            return row
    raise KeyError(f'"{name}" is not in the glossary of metrics (posttrain/train/metrics.py). {nearest(name, METRICS)}')


def mean(metrics: Mapping) -> dict[str, float]:
    """Plain floats from (sum, count) pairs, sorted by name; plain numbers pass. A metric with count 0 is left out."""
    values = {}
    for name in sorted(metrics):
        entry = metrics[name]
        if isinstance(entry, tuple):
            total, count = float(entry[0]), float(entry[1])
            if count != 0:
                values[name] = total / count
        else:
            values[name] = float(entry)
    return values


def add(first: Metrics, second: Metrics) -> Metrics:
    """Both sets of (sum, count) together: what two micro-batches say of one step."""
    both = dict(first)
    for name, (total, count) in second.items():
        if name not in both:
            both[name] = (total, count)
        elif name.endswith("_max"):
            both[name] = max(both[name], (total, count), key=lambda entry: float(entry[0]))
        else:
            both[name] = (both[name][0] + total, both[name][1] + count)
    return both
