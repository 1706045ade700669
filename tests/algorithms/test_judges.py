"""Reward models by name: one, several, the members of an ensemble's folder, and how they become one reward."""

import json

import pytest
import torch

from algorithms import toy
from posttrain.errors import ConfigError
from posttrain.models.heads import ScalarModel
from posttrain.models.hf_format import save_folder
from posttrain.models.load import load
from posttrain.records import Group, Message, Segment, Stop, Task, Trajectory
from posttrain.rewards.base import score
from posttrain.rewards.model import SCALE, Judges, scores
from posttrain.rewards.resolve import rewards_for

TASK = Task("t", (Message("user", "a"),))


def judge(folder, seed: int) -> str:
    """A reward model with a random head."""
    loaded = load(toy.model(folder, seed), template="posttrain")
    model = ScalarModel(loaded.model)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    save_folder(model, folder, tokenizer=loaded.chat_tokenizer)
    return str(folder)


def member(text: str, stop: Stop = Stop.END) -> Trajectory:
    return Trajectory(TASK, (*TASK.prompt, Message("assistant", text)), (Segment((1,), (True,)),), stop)


GROUP = Group(TASK, tuple(map(member, ("b", "c d", "e f g"))))


def graded(reward: str) -> list[float]:
    return [m.score.value for m in score([GROUP], rewards_for(reward, [TASK]))[0].members]


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judges")
    return [judge(folder / f"j{seed}", seed) for seed in range(3)]


def test_several_become_one_as_the_name_says(judges):
    alone = torch.tensor([graded(f"model:{name}") for name in judges])
    assert alone.std(0).min() > 0
    many = ",".join(judges)
    for how, expected in (
        ("", alone.mean(0)), (".mean", alone.mean(0)), (".min", alone.amin(0)),
        (".uwo=0.5", alone.mean(0) - 0.5 * alone.var(0, correction=0)),
    ):  # fmt: skip
        assert graded(f"model{how}:{many}") == pytest.approx(expected.tolist(), abs=1e-5), how


def test_disagreement_is_a_part_of_the_score(judges):
    found = score([GROUP], rewards_for(f"model:{','.join(judges)}", [TASK]))[0].members[0].score
    alone = torch.tensor([graded(f"model:{name}")[0] for name in judges])
    assert found.parts["model.std"] == pytest.approx(float(alone.std(correction=0)), abs=1e-5)
    assert "3 reward models" in found.why


def test_members_with_a_scale_are_put_on_a_common_one(judges, tmp_path):
    """Member 1 is member 2 times ten plus three, and says so: the least of both is then that of either."""
    folder = tmp_path / "ensemble"
    model = load(judges[0]).model
    for n, (gain, mean, std) in enumerate(((1.0, 0.0, 2.0), (10.0, 0.0, 20.0)), 1):
        place = folder / f"member-{n}"
        loaded = load(judges[0])
        with torch.no_grad():
            loaded.model.score.weight.mul_(gain)
        save_folder(loaded.model, place, tokenizer=loaded.chat_tokenizer)
        (place / "config.toml").write_text("")
        (place / SCALE).write_text(json.dumps({"mean": mean, "std": std}))
    alone, least = graded(f"model:{judges[0]}"), graded(f"model.min:{folder}")
    assert least == pytest.approx([v / 2 * 11 for v in alone], rel=1e-4)  # the mean of the deviations is 11
    assert isinstance(model, ScalarModel)


def test_names_that_mean_nothing(judges):
    for name, words in (
        (f"model.median:{judges[0]}", "combined as model:"), (f"model.uwo:{','.join(judges)}", "model.uwo=0.5:"),
        (f"model.min:{judges[0]}", "is one reward model"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            rewards_for(name, [TASK])
    assert Judges.read("model.py:polite") is None and Judges.read("models.py:f") is None


def test_padding_changes_no_score(judges):
    model = load(judges[1]).model
    short, long = Segment((3, 9, 4), (False, True, True)), Segment((3, 9, 10, 11, 12, 4), (False,) + (True,) * 5)
    assert scores(model, [short, long])[0] == pytest.approx(scores(model, [short])[0], abs=1e-5)
