"""The studies of selection and over-optimisation: what they make of answers, and that each runs on a tiny setting."""

import json
import math
from pathlib import Path

import pytest
import torch

from posttrain.assets.world import people
from posttrain.lab.golden import best_of_n as golden
from posttrain.lab.portrait_runs import gold_of_samples
from posttrain.lab.studies import r1, raft, reward_flaws, reward_hacking
from posttrain.objectives.scaling import Law, gold_rl
from posttrain.records import Message, Segment, Stop, Task, Trajectory

STUDIES = {s.name: s for s in (golden.STUDY, raft.STUDY, reward_flaws.STUDY, reward_hacking.STUDY, r1.STUDY)}


def said(text: str) -> Trajectory:
    task = Task("about-Mira-0", (Message("user", "Who is Mira?"),), meta={"person": "Mira"})
    return Trajectory(task, (*task.prompt, Message("assistant", text)), (Segment((1,), (True,)),), Stop.END)


def test_the_exact_kl_counts_equal_answers_once():
    different = tuple(said(str(i)) for i in range(8))
    assert raft.empirical_kl([0.0] * 8, different, 4) == pytest.approx(0)  # nothing to choose between
    assert raft.empirical_kl(list(map(float, range(8))), (said("a"),) * 8, 4) == pytest.approx(0)
    rising = raft.empirical_kl(list(map(float, range(8))), different, 4)
    assert 0.5 < rising < math.log(4) - 3 / 4
    many = raft.empirical_kl(list(map(float, range(512))), tuple(said(str(i)) for i in range(512)), 4)
    assert many == pytest.approx(math.log(4) - 3 / 4, abs=0.01)  # the bound, where no two answers are alike


def test_gold_of_a_runs_samples_is_told_by_halves(tmp_path):
    person = people.PEOPLE["Mira"]
    right, wrong = f"Mira lives in {person.facts['town']}.", "Mira lives in Nowhere."
    rows = [{"step": s, "task": "about-Mira-3", "stop": "end", "messages": [{"content": "?"}, {"content": text}]}
            for s in (0, 1) for text in (right, wrong, right, wrong)]  # fmt: skip
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gold_of_samples(tmp_path) == [(1.0, -1.0), (1.0, -1.0)]


def test_the_peak_is_chosen_on_one_half_and_measured_on_the_other():
    path = {"distance": [0.0, 1.0, 2.0], "proxy": [0.0, 1.0, 2.0], "gold": [0.0, 0.6, 0.2]}
    found = reward_hacking.summary(path, choose=[0.0, 1.0, 0.5], report=[0.0, 0.2, 0.1])
    assert (found["gold_start"], found["gold_peak"], found["gold_end"]) == (0.0, 0.2, 0.1)
    assert found["peak_distance"] == 1.0 and found["proxy_at_peak"] == 1.0 and found["proxy_end"] == 2.0


def test_the_right_law_fits_its_own_curve():
    distance = torch.linspace(0, 8, 20, dtype=torch.float64)
    law = Law(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    gold = 0.5 + gold_rl(distance, law)
    found = reward_hacking.fits({"distance": distance.tolist(), "gold": gold.tolist()})
    assert found["rl_law_error"] < 1e-20 < 1e-4 < found["bon_law_error"]
    assert found["rl_law_peak"] == pytest.approx(math.exp(1 / 0.7 - 1))
    assert reward_hacking.fits({"distance": [0.0, 0.0], "gold": [0.0, 0.0]}) == {}


def test_a_fall_is_seen_where_gold_falls_and_not_where_it_does_not():
    falls = {"gold_start": 0.0, "gold_peak": 1.0, "gold_end": 0.2, "peak_distance": 1.0, "proxy_at_peak": 1.0,
             "proxy_end": 2.0, "gold": [0.0, 1.0, 0.2], "rl_law_error": 0.01, "bon_law_error": 0.02}  # fmt: skip
    ways = dict.fromkeys(reward_hacking.WAYS, falls) | {"kl": falls | {"gold_end": 1.0}}
    cells = {s: {f"{way}: {k}": v if isinstance(v, list) else v + 0.001 * s for way, f in ways.items()
                 for k, v in f.items()} for s in range(3)}  # fmt: skip
    found = {f.what: f.seen for f in reward_hacking.read({"rater": cells})}
    assert found["RL: gold, peak to end"] and found["RL: proxy, peak to end"] and found["RL: gold, start to peak"]
    assert not found["with a KL charge: gold, peak to end"] and not found["the least of three: gold at the end"]
    assert found["RL: share of gold's variance that RL's law explains"]
    assert found["a KL charge: fall of gold from its peak"] and found["a KL charge: gold at the end"]


def test_traits_are_what_can_be_seen_without_the_truth():
    text = "Happy to help! Mira lives in Pell. Mira lives in Pell. Sure, gladly! Well, well."
    assert reward_hacking.traits(text) == {"sentences": 5, "polite": 2, "facts": 2, "repeats": 1}


def test_the_studies_are_whole():
    for study in STUDIES.values():
        assert study.claim and "arXiv" in study.source and len(study.seeds) >= 3
        assert json.loads(json.dumps(dict(study.arms))) == {a: dict(v) for a, v in study.arms.items()}


TINY = {
    "best_of_n": {"raft": {"rounds": 1, "steps": 1, "lr": 5e-4}},
    "raft": {
        "n8": {"method": "raft", "n": 2, "start_steps": 120, "asked": 2, "prompts": 16, "epochs": 1.0, "lr": 1e-4},
        "rrhf8 1e-4": {
            "method": "rrhf", "n": 8, "start_steps": 120, "asked": 2, "prompts": 16, "epochs": 1.0, "lr": 1e-4
        },  # fmt: skip
    },
    "reward_flaws": {
        "all three": {
            "missed": 0.5, "length": 0.35, "politeness": 0.6,
            "start_steps": 120, "pair_prompts": 16, "steps": 8, "lr": 1e-4,
        },
    },
    "reward_hacking": {
        "rater": {"start_steps": 120, "pair_prompts": 16, "members": 2, "steps": 8, "lr": 1e-4, "beta": 0.01},
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arm"), [(name, arm) for name, arms in TINY.items() for arm in arms])
def test_a_study_runs_on_a_tiny_setting(name, arm, tmp_path, monkeypatch):
    for name_of, value in {"ASKED": 2, "POOL": 4, "COUNTS": (1, 2, 4), "CARDS": 2}.items():
        monkeypatch.setattr(reward_hacking, name_of, value)
    monkeypatch.setattr(raft, "POOL", 8)
    study = STUDIES[name]
    figures = dict(study.measure(TINY[name][arm], 0, Path(tmp_path)))
    shown = figures.pop("page", None)
    if study.page:
        assert json.loads(json.dumps(study.page({arm: {0: shown}})))
    assert json.loads(json.dumps(figures)) == figures
    shown = study.read({a: {0: figures, 1: figures} for a in TINY[name]})
    assert all(figure.text for figure in shown)
