"""`posttrain methods race`: who may race, the search over step sizes, figures by hand, curves, the page, resuming."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from algorithms import toy
from posttrain.cli.main import main
from posttrain.cli.race import Options, default_folder, loops, track_of
from posttrain.cli.race_view import cells, render, table
from posttrain.errors import ConfigError, UsageError
from posttrain.lab.race import SEARCH_SEED, Ran, config_of, entrant, final, mean_curve, racing, run_race

LOOPS = loops()
RIGHT = "def right(task, trajectory):\n    return float('b' in trajectory.completion.split())\n"


def run(capsys, *words) -> tuple[int, str, str]:
    try:
        code = main(["methods", "race", *map(str, words)])
    except SystemExit as left:
        code = left.code
    return code, *capsys.readouterr()


def words(folder, *more) -> list:
    (folder / "reward.py").write_text(RIGHT)
    data = toy.rows(folder / "tasks.jsonl", [{"prompt": w} for w in toy.WORDS])
    return ["--task", data, "--model", toy.model(folder / "model"), "--template", "posttrain",
            "--reward", f"{folder / 'reward.py'}:right", "--steps", 4, "--prompts", 4, "--samples", 4,
            "--max-tokens", 8, "--eval-every", 2, "--eval-rows", 4, "--out", folder / "out", *more]  # fmt: skip


def test_who_may_race():
    assert (e := entrant("dapo", LOOPS)).preset == "dapo" and e.module.__name__.endswith(".group")
    assert (e := entrant("ppo-dual-clip", LOOPS)).preset == "ppo_dual_clip" and e.module.__name__.endswith("ppo")
    assert (e := entrant("vapo", LOOPS)).preset is None and e.module.__name__.endswith(".vapo")
    assert entrant("group/reinforce", LOOPS).preset == "reinforce"
    assert {"group", "ppo", "vapo", "reinforce"} <= set(racing(LOOPS)) and "sft" not in racing(LOOPS)
    with pytest.raises(UsageError, match='no method "gpso".*Did you mean "gspo"'):
        entrant("gpso", LOOPS)
    with pytest.raises(UsageError, match='"sft" cannot race: .*no reward'):
        entrant("sft", LOOPS)


def test_all_get_the_same_start_data_and_budget():
    track = track_of(Options(steps=12, prompts=4, samples=2))
    found = [config_of(entrant(name, LOOPS), track, 1e-3, 5) for name in ("grpo", "dr_grpo", "ppo", "vapo")]
    for name in ("model", "template", "data", "reward", "steps", "prompts", "group_size", "sampling", "eval_every"):
        assert len({repr(getattr(cfg, name)) for cfg in found}) == 1, name
    assert all(cfg.optim.lr == 1e-3 and cfg.run.seed == 5 for cfg in found)
    assert found[1].objective.average.horizon == 40  # the longest answer there is, not the paper's


def test_a_race_from_the_command_line_and_again(capsys, tmp_path):
    line = words(tmp_path, "--seeds", 2, "--lrs", "0.003,0.01")
    code, out, err = run(capsys, "grpo", "dapo", *line)
    assert code == 0, err
    assert f"on seed {SEARCH_SEED}, which is not reported" in " ".join(out.split())
    assert len(re.findall(r"^(grpo|dapo)  lr \S+  seed \d+: ", out, re.M)) == 8  # two searched, two reported, twice
    rows = json.loads((tmp_path / "out" / "race.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["grpo", "dapo"] and set(rows[0]["searched"]) == {"0.003", "0.01"}
    assert rows[0]["answers"] == 4 * 4 * 4 <= rows[1]["answers"] and rows[0]["over_first"] is None
    page = (tmp_path / "out" / "race.html").read_text()
    assert "held-out tasks" in out and "o grpo   x dapo" in out
    assert not re.search(r"https?:|<script src|@import|url\(", page) and "Step sizes tried" in page
    code, again, _ = run(capsys, "grpo", "dapo", *line)
    assert code == 0 and "seed 0:" not in again  # everything was there
    assert again.split("Reward of")[1] == out.split("Reward of")[1]
    code, more, _ = run(capsys, "grpo", *words(tmp_path, "--seeds", 3, "--lrs", "0.003,0.01"))
    assert code == 0 and re.findall(r"seed (\d+):", more) == ["2"]


def test_an_interrupted_race_goes_on(tmp_path, monkeypatch):
    base = Options(steps=4, prompts=4, samples=4, max_tokens=8, eval_every=2, eval_rows=4)
    given = dict(zip(*[iter(words(tmp_path))] * 2, strict=True))
    options = replace(base, task=given["--task"], model=given["--model"], template="posttrain",
                      reward=given["--reward"], lr="0.01", seeds=2)  # fmt: skip
    track, racers = track_of(options), [entrant("grpo", LOOPS), entrant("rloo", LOOPS)]
    whole = run_race(racers, track, tmp_path / "whole")

    told = []

    def stops(text):
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_race(racers, track, tmp_path / "broken", stops)
    told.clear()
    again = run_race(racers, track, tmp_path / "broken", told.append)
    assert [text.split(":")[0] for text in told] == ["rloo  lr 0.01  seed 1"]
    assert [r.curves for r in again] == [r.curves for r in whole] and not whole[0].searched


def test_a_run_that_stops_itself_is_a_result(tmp_path):
    line = words(tmp_path)
    (tmp_path / "reward.py").write_text("def right(task, trajectory):\n    return 1.0\n")
    given = dict(zip(*[iter(line)] * 2, strict=True))
    options = Options(steps=6, prompts=4, samples=4, max_tokens=8, eval_every=2, eval_rows=4, lr="0.01", seeds=1,
                      task=given["--task"], model=given["--model"], template="posttrain",
                      reward=given["--reward"])  # fmt: skip
    found = run_race([entrant("grpo", LOOPS)], track_of(options), tmp_path / "out")
    assert "5 silent batches" in found[0].broken[0] and not found[0].curves
    (row,) = table(found)
    assert row["final"] is None and cells(row)[2:] == ["", "", "", "", ""]
    page = render(found, [row], track_of(options), "<task>")
    assert "&lt;task&gt;" in page and "stopped itself" in page


def test_by_the_rewards_of_training(capsys, tmp_path):
    code, out, err = run(capsys, "grpo", *words(tmp_path, "--seeds", 1, "--lr", 0.01, "--by", "training"))
    assert code == 0, err
    assert "Mean reward of the samples of 2 steps" in out and "Step size 0.01 for all, not searched." in out
    steps = toy.lines(tmp_path / "out" / "grpo" / "lr-0.01-seed-0" / "metrics.jsonl")
    curve = json.loads((tmp_path / "out" / "race.json").read_text())["curves"]["grpo"]["0"]
    rewards = [m["reward_mean"] for m in steps]
    assert curve == [[2, pytest.approx(sum(rewards[:2]) / 2)], [4, pytest.approx(sum(rewards[2:]) / 2)]]


def test_nobody_got_any_reward(capsys, tmp_path):
    line = words(tmp_path, "--seeds", 1, "--lr", 1e-9)
    (tmp_path / "reward.py").write_text(RIGHT.replace("'b' in", "'zz' in"))
    code, out, _ = run(capsys, "grpo", *line)
    assert code == 0 and "Nobody got any reward" in out


# --- figures by hand -----------------------------------------------------------------------------------------------


def ran(name: str, *ends: float, lr: float = 1e-3, searched=None) -> Ran:
    curves = {seed: [(5, 0.0), (10, end - 0.1), (15, end + 0.1)] for seed, end in enumerate(ends)}
    return Ran(name, lr, searched or {}, curves, dict.fromkeys(curves, 640), dict.fromkeys(curves, 12.0))


def test_the_table_by_hand():
    first, second = ran("a", 0.5, 0.6, 0.7), ran("b", 0.7, 0.7, 0.9, searched={1e-3: 0.5, 3e-3: 0.2})
    rows = table([first, second])
    mean, low, high = rows[0]["final"]
    assert mean == pytest.approx(0.6) and high - mean == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-3)
    mean, low, high = rows[1]["over_first"]  # differences 0.2, 0.1, 0.2
    assert mean == pytest.approx(0.5 / 3) and high - mean == pytest.approx(4.3027 * (1 / 300) ** 0.5 / 3**0.5, rel=1e-3)
    assert rows[1]["edge"] and not rows[0]["edge"] and cells(rows[1])[1] == "0.001*"
    assert table([ran("a", 0.5)])[0]["final"] == (0.5, None, None) and cells(table([ran("a", 0.5)])[0])[2] == "0.500"
    assert rows[0]["area"][0] == pytest.approx(0.4) and cells(rows[0])[5:] == ["640", "12"]
    assert final([(1, 0.0), (2, 0.2), (3, 0.4)]) == pytest.approx(0.3)
    assert mean_curve(first) == [(5, 0.0), (10, pytest.approx(0.5)), (15, pytest.approx(0.7))]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.bad = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "line", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.bad.append(tag)


def test_the_page_nests():
    found = [ran("a", 0.5, 0.6), ran("b", 0.1, 0.2, searched={1e-3: 0.5, 3e-3: float("-inf")})]
    page = Page(render(found, table(found), track_of(Options(lrs=(1e-3, 3e-3))), "sums"))
    assert not page.open and not page.bad


def test_refusals(capsys, tmp_path):
    assert run(capsys, "--help")[0] == 0
    assert 'lr = "fast" is neither' in run(capsys, "grpo", "--lr", "fast", "--out", tmp_path)[2]
    assert "stands there twice" in run(capsys, "grpo", "grpo", "--out", tmp_path)[2]
    with pytest.raises(ConfigError, match="eval_every = 50 exceeds steps"):
        track_of(Options(eval_every=50))
    with pytest.raises(ConfigError, match="seeds = 0"):
        track_of(Options(seeds=0))
    assert default_folder(track_of(Options())) == default_folder(track_of(Options(seeds=9, lr="1e-3")))
    assert default_folder(track_of(Options())) != default_folder(track_of(Options(steps=9)))
