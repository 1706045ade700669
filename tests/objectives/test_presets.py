"""The table of methods: which rows there are, that they differ, and that they hold the numbers of their papers."""

from dataclasses import asdict, replace

import pytest

from posttrain.objectives.advantages import ADVANTAGES
from posttrain.objectives.average import Average
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.surrogate import Clip

KNOWN = (
    "reinforce rloo reinforce_pp reinforce_pp_baseline ppo grpo dr_grpo dapo gspo cispo sapo maxrl remax opo gpg "
    "lite_ppo gdpo pass_at_k pass_at_k_training otb flash_reinforce ppo_penalty ppo_dual_clip decoupled_ppo vapo "
    "intellect_2 r1 gspo_token gmpo luspo vespo dppo dppo_kl prime_rl dro kimi clip_cov kl_cov high_entropy "
    "skywork_or1 tis mis icepop deepseek_v32 scale_rl olmo3"
).split()


def test_the_rows_that_the_library_promises():
    assert list(PRESETS) == KNOWN


def test_no_two_names_mean_the_same():
    rows = [repr(sorted(asdict(o).items(), key=str)) for o in PRESETS.values()]
    assert len(set(rows)) == len(rows)


def test_every_choice_is_some_method_s():
    """What no row uses could go."""
    rows = PRESETS.values()
    assert {o.advantage for o in rows} == set(ADVANTAGES) - {"batch_zscore"}  # GDPO's last step, on its own
    assert {o.ratio for o in rows} == {"none", "token", "sequence", "sequence_sum", "sequence_token"}
    assert {o.clip.kind for o in rows} == {"min", "weight", "soft", "geometric", "gamma", "log", "none"}
    assert {o.gate.kind for o in rows} == {"none", "tv", "binary_kl", "answer"}
    assert {o.focus.kind for o in rows} == {"all", "entropy", "covariance"}
    assert {o.average.kind for o in rows} == {"token", "sequence", "prompt", "constant", "sum"}
    assert {o.proximal.estimator for o in rows} == {"none", "k2", "k3", "abs"}
    assert {o.mismatch.kind for o in rows} == {"off", "truncate", "mask"}
    assert {o.kl.where for o in rows} == {"none", "reward", "loss"}


@pytest.mark.parametrize(
    "name, group, reference, critic",
    [
        ("grpo", True, True, False),
        ("dapo", True, False, False),
        ("rloo", True, True, False),
        ("reinforce", False, True, False),
        ("reinforce_pp", False, True, False),
        ("ppo", False, True, True),
        ("remax", False, True, False),
        ("flash_reinforce", False, False, False),
        ("vapo", False, False, True),
    ],
)
def test_what_a_method_needs(name, group, reference, critic):
    objective = PRESETS[name]
    assert (objective.needs_group, objective.needs_reference, objective.needs_critic) == (group, reference, critic)


def test_values_of_the_papers():
    p = PRESETS
    assert (p["grpo"].kl.beta, p["grpo"].kl.estimator, p["grpo"].kl.where) == (0.04, "k3", "loss")
    assert p["dapo"].clip == Clip(low=0.2, high=0.28) and p["dapo"].keep == "mixed"
    assert (p["gspo"].clip.low, p["gspo"].clip.high) == (3e-4, 4e-4)
    assert p["cispo"].clip.edges == (0.0, 5.0) and p["r1"].clip.edges == (0.0, 11.0)
    assert p["dr_grpo"].average == Average("constant", 3000) and p["scale_rl"].average == Average("prompt")
    assert (p["luspo"].clip.low, p["luspo"].clip.high, p["luspo"].average.kind) == (2e-3, 2.5e-3, "sum")
    assert (p["gmpo"].clip.low, p["gmpo"].clip.high) == (0.4, 0.4)
    assert (p["intellect_2"].clip.cap, p["ppo_dual_clip"].clip.cap) == (4.0, 3.0)
    gamma = p["vespo"].clip
    assert (gamma.k, gamma.lam, gamma.k_negative, gamma.lam_negative) == (2.0, 3.0, 3.0, 2.0)
    assert (p["dppo"].gate.low, p["dppo_kl"].gate.low, p["dppo"].old) == (0.15, 0.05, "sampler")
    assert (p["high_entropy"].focus.share, p["clip_cov"].focus.share, p["kl_cov"].proximal.share) == (0.2, 2e-4, 2e-3)
    assert (p["clip_cov"].focus.low, p["clip_cov"].focus.high) == (1.0, 5.0)
    assert (p["skywork_or1"].entropy.target, p["skywork_or1"].entropy.delta) == (0.2, 0.005)
    assert (p["icepop"].mismatch.low, p["icepop"].mismatch.high, p["tis"].mismatch.high) == (0.5, 5.0, 2.0)
    assert p["deepseek_v32"].kl.corrected and p["deepseek_v32"].gate.against == "sampler"
    assert p["ppo_penalty"].proximal.target == 0.01 and p["decoupled_ppo"].mismatch.high is None


def test_notes_speak_about_the_unusual_only():
    fresh = [name for name, o in PRESETS.items() if not o.corrects_stale]
    for name, objective in PRESETS.items():
        assert ("fresh" in " ".join(objective.notes())) == (name in fresh) and len(objective.notes()) < 2, name


def test_a_row_is_a_recombination_of_choices():
    """A relative of known methods needs no code: a value of one record."""
    mine = replace(PRESETS["gspo"], advantage="leave_one_out", average=Average("prompt"))
    assert mine not in PRESETS.values() and mine.needs_group
