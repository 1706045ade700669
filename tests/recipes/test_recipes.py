"""The recipes: what the command says, that every stage is reused, and (slow) that each runs from end to end."""

import json
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from posttrain.algorithms import preference
from posttrain.cli import recipe
from posttrain.cli.main import main
from posttrain.data.tasks import tasks, verify
from posttrain.models.load import load
from posttrain.recipes import instructgpt, learning_to_summarize, r1, r1_zero, reasoning, zephyr
from posttrain.recipes.gather import Setting
from posttrain.recipes.report import Claim, Column, headline, render
from posttrain.records import Message, Stop, Trajectory
from posttrain.rewards.worked import in_form

MODULES = {m.__name__.rpartition(".")[2]: m for m in (learning_to_summarize, instructgpt, zephyr, r1_zero, r1)}


def call(capsys, *words: str) -> tuple[int, str, str]:
    code = main(words)
    return code, *capsys.readouterr()


def test_the_command_lists_the_recipes_and_says_what_each_does(capsys):
    assert set(recipe.RECIPES) == set(MODULES)
    code, out, _ = call(capsys, "recipe")
    assert code == 0 and all(name in out for name in MODULES)
    for name in MODULES:
        code, out, _ = call(capsys, "recipe", name.replace("_", "-"), "--help")
        assert code == 0 and "--size" in out
        for words in ("What the paper did", "What we do", "What we left out", "arXiv"):
            assert words in out, (name, words)


def test_what_it_does_not_know_it_says(capsys):
    code, _, err = call(capsys, "recipe", "r2")
    assert code == 2 and '"r2"' in err and "posttrain recipe" in err
    code, _, err = call(capsys, "recipe", "--size", "tiny")
    assert code == 2 and "comes before the recipe" in err
    code, _, err = call(capsys, "recipe", "r1", "--size", "huge")
    assert code == 2 and "size" in err


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_both_sizes_say_every_number(module):
    assert set(module.SIZES) == {"laptop", "tiny"}
    for size in module.SIZES.values():
        assert all(getattr(size, f.name) > 0 for f in fields(size))
    columns = {c["key"] for c in getattr(module, "COLUMNS", reasoning.COLUMNS)}
    assert all(Column(**c).meaning for c in getattr(module, "COLUMNS", reasoning.COLUMNS)) and "seconds" in columns
    assert all(Claim(**c).words for c in module.STORY)


# --- the report's own columns and headline --------------------------------------------------------------------------


def test_a_report_may_bring_its_own_columns_and_headline():
    entry = {"value": 1.25, "low": 1.0, "high": 1.5, "n": 7}
    later = entry | {"value": 2.5, "low": 2.25, "high": 2.75}
    data = {
        "columns": [{"key": "gold", "label": "Gold", "meaning": "a grade", "share": False, "digits": 2}],
        "story": [{"to": "b", "start": "a", "key": "gold", "digits": 2, "words": "training took gold"}],
        "stages": [{"name": "a", "title": "A", "gold": entry}, {"name": "b", "title": "B", "gold": later}],
    }
    assert headline(data) == "Training took gold from <b>1.25</b> to <b>2.50</b>."
    text = render(data)
    assert "<small>1.00 to 1.50</small>" in text and "Well formed" not in text
    data["stages"][1]["gold"] = entry
    assert "their intervals overlap" in headline(data)
    lines = [recipe.cell(entry, Column(**data["columns"][0])), recipe.cell(None, recipe.measured(data)[0])]
    assert lines == ["1.25\n1.00 to 1.50", ""]


# --- parts of R1 ----------------------------------------------------------------------------------------------------


def said(text: str, stop: Stop = Stop.END, task=None) -> Trajectory:
    task = task or tasks("chains", 1)[0]
    return Trajectory(task, (*task.prompt, Message("assistant", text)), (), stop)


def test_cold_start_solutions_are_right_in_form_and_never_held_out():
    rows = r1.solutions(60, 0)
    held = {t.prompt[0].content for kind in reasoning.PROBLEMS for t in tasks(kind, 300, 0, "test")}
    assert len(rows) > 45 and not held & {row["prompt"] for row in rows}
    for row in rows:
        assert in_form(said(row["completion"])), row
        assert reasoning.sound(said(row["completion"])), row
    assert {row["prompt"].split()[0] for row in rows} == {"What", "Make"}


def test_equations_are_read_and_not_evaluated():
    assert reasoning.sound(said("7+5=12 c1, 4+8+1=13, so 132."))
    assert not reasoning.sound(said("7+5=13 c1, 4+8+1=13, so 132."))
    assert reasoning.sound(said("so 132."))


def test_every_kind_of_problem_takes_its_turn():
    asked = reasoning.turns(reasoning.PROBLEMS, 7, 0)
    assert [t.meta["task"] for t in asked[:4]] == ["sums", "chains", "countdown", "sums"] and len(asked) == 7
    assert all(verify(t, t.answer).value == 1 for t in asked)


def test_the_small_model_is_the_base_without_its_last_layer_but_one(tmp_path):
    small, base = load(r1.smaller(tmp_path / "small")), load("base")
    assert small.model.cfg.num_hidden_layers == base.model.cfg.num_hidden_layers - 1
    assert (
        small.template is not None
        and (small.model.layers[-1].mlp.up_proj.weight == base.model.layers[-1].mlp.up_proj.weight).all()
    )
    stamp = (tmp_path / "small" / "model.safetensors").stat().st_mtime_ns
    r1.smaller(tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").stat().st_mtime_ns == stamp, "written once"


# --- whole recipes --------------------------------------------------------------------------------------------------


def figures(folder: Path, name: str) -> dict:
    """What a recipe found, without what a clock or a machine says."""
    data = json.loads((folder / f"{name}.json").read_text())
    for key in ("seconds", "peak_memory_mb", "command"):
        data.pop(key)
    for stage in data["stages"]:
        stage.pop("seconds")
    if data.get("reward_model"):
        data["reward_model"].pop("seconds")
    return json.loads(json.dumps(data).replace(json.dumps(str(folder))[1:-1], "OUT"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_recipe_runs_from_end_to_end_and_again_reuses_every_stage(name, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ("recipe", name, "--size", "tiny", "--threads", "1", "--out", str(out))
    code, shown, err = call(capsys, *words)
    assert code == 0, err
    assert "what each stage changed" in shown and (out / "report.html").stat().st_size > 20_000
    first = figures(out, name)
    assert first["stages"][-1]["title"] in shown
    assert json.loads((out / f"{name}.json").read_text())["command"] == f"posttrain {shlex.join(words)}"
    steps = {p: p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")}
    assert call(capsys, *words)[0] == 0
    assert figures(out, name) == first
    assert steps == {p: p.stat().st_mtime_ns for p in out.rglob("metrics.jsonl")}, "a finished stage was run again"


@pytest.mark.slow
def test_a_recipe_that_was_stopped_in_a_stage_ends_with_the_same_figures(tmp_path, monkeypatch):
    size = zephyr.SIZES["tiny"]
    zephyr.run(size, Setting(out=tmp_path / "whole", threads=1, say=lambda text: None))
    real, calls = preference.Run.save, []

    def stopped(self, step, parts, state=None):
        if self.folder.name == "2-dpo" and len(calls) < 1 and step == 6:
            calls.append(step)
            raise KeyboardInterrupt
        return real(self, step, parts, state)

    monkeypatch.setattr(preference.Run, "save", stopped)
    at = Setting(out=tmp_path / "cut", threads=1, say=lambda text: None)
    with pytest.raises(KeyboardInterrupt):
        zephyr.run(size, at)
    zephyr.run(size, at)
    assert figures(tmp_path / "cut", "zephyr") == figures(tmp_path / "whole", "zephyr")
