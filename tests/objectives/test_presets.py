"""The table of methods: what each row asks for, and that rows differ."""

from dataclasses import asdict

import pytest

from posttrain.objectives.policy import Objective
from posttrain.objectives.presets import PRESETS


def test_the_rows_that_the_library_promises():
    assert set(PRESETS) == {
        "reinforce", "rloo", "reinforce_pp", "reinforce_pp_baseline", "ppo", "grpo", "dr_grpo", "dapo", "gspo",
        "cispo", "sapo", "maxrl",
    }  # fmt: skip


def test_no_two_names_mean_the_same():
    rows = [repr(sorted(asdict(o).items(), key=str)) for o in PRESETS.values()]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    "name, group, reference, critic",
    [
        ("grpo", True, True, False),
        ("dapo", True, False, False),
        ("rloo", True, True, False),
        ("reinforce", False, True, False),
        ("reinforce_pp", False, True, False),
        ("ppo", False, True, True),
    ],
)
def test_what_a_method_needs(name, group, reference, critic):
    objective = PRESETS[name]
    assert (objective.needs_group, objective.needs_reference, objective.needs_critic) == (group, reference, critic)


def test_values_of_the_papers():
    assert (PRESETS["grpo"].kl.beta, PRESETS["grpo"].kl.estimator) == (0.04, "k3")
    assert (PRESETS["dapo"].clip.low, PRESETS["dapo"].clip.high, PRESETS["dapo"].keep) == (0.2, 0.28, "mixed")
    assert (PRESETS["gspo"].clip.low, PRESETS["gspo"].clip.high) == (3e-4, 4e-4)
    assert PRESETS["cispo"].clip.edges == (0.0, 5.0)
    assert PRESETS["dr_grpo"].average.horizon == 3000


def test_notes_speak_about_the_unusual_only():
    fresh = [name for name, o in PRESETS.items() if o.ratio == "none"]
    assert all(
        ("fresh" in " ".join(PRESETS[n].notes())) == (n in fresh) and len(PRESETS[n].notes()) < 2 for n in PRESETS
    )
    assert "hardly clips" in Objective(ratio="sequence").notes()[0]
