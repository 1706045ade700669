"""The report of a run, and runs side by side: every method's samples are read, nothing fetched, nothing executed."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
from test_report import ATTACK, Page

from posttrain.pages import compare, diff, folder
from posttrain.pages.plot import thinned
from posttrain.pages.run import render_run
from posttrain.pages.samples import plain, read

METRICS = [{"step": i, "reward_mean": i / 9, "loss": 1 / 3, "epoch": i} for i in range(10)]
EPISODE = {
    "step": 9,
    "task": "sums-1",
    "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": ATTACK}],
    "stop": "end",
    "version": 9,
    "length": 2,
    "score": {"value": 1.0, "parts": {"right": 1.0, "form": 0.5}, "answer": "4", "why": ATTACK},
    "segments": [
        {"tokens": [5, 6, 7], "mask": ".xx", "logp": [None, -0.5, -0.25], "advantage": [0.0, 0.5, -1.0]},
        {"tokens": [8, 9], "mask": ".x", "logp": [None, -1.5], "advantage": [0.0, 0.25]},
    ],
}
TEXT = {"text": ATTACK, "tokens": [5, 6], "mask": ".x"}
SAMPLES = {
    "episode": EPISODE,
    "text": {"step": 9, **TEXT},
    "pair": {"step": 9, "chosen": TEXT, "rejected": TEXT, "margin": 0.5},
    "ranking": {"step": 9, "answers": [TEXT, TEXT], "scores": [1.0, 0.5]},
    "verdict": {"step": 9, **TEXT, "good": False},
    "control": {"step": 9, "observations": [[0.1], [0.2]], "actions": [0, 1], "paid": [1.0, 1.0], "rewards": [0.1, 0.1],
                "advantages": [0.5, -0.5], "ended": True},
    "other": {"step": 9, "anything": ATTACK},
}  # fmt: skip


def write(folder: Path, metrics=METRICS, samples=(EPISODE,), rows=("a 1", "b 2"), config="lr = 0.1\n[run]\nseed = 0\n"):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config)
    (folder / "meta.json").write_text(json.dumps({"method": "group", "config_class": "nowhere.Config", "sessions": [
        {"started": "2027", "command": ATTACK, "device": "cpu", "machine": "Linux", "python": "3.11", "processes": 1,
         "versions": {"torch": "2"}, "revision": None}]}))  # fmt: skip
    check = {"step": 0, "check": "weights_changed", "ok": False, "value": ATTACK, "advice": "Look."}
    lines = {"metrics": metrics, "samples": samples, "rows": [{"step": 0, "rows": list(rows)}],
             "timing": [{"step": 0, "seconds": 3.0}], "invariants": [check]}  # fmt: skip
    for name, found in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found) + '{"half')
    return folder


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_kind_of_sample_has_its_page_and_its_text(tmp_path, kind):
    run = write(tmp_path / "r", samples=[SAMPLES[kind]])
    page = Page(render_run(run))
    assert not page.having("src") and page.policy.startswith("default-src 'none'")
    assert sum(tag == "script" for tag, _ in page.elements) == 1, "nothing a model wrote becomes markup"
    ids = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert ids == ["curves", "samples", "checks", "figures", "config", "origin"]
    for decode in (None, lambda ids: "".join(f"<{i}>" for i in ids)):
        assert plain(read(SAMPLES[kind], decode))


def test_tokens_show_what_they_were_reinforced_with():
    first, second = read(EPISODE, lambda ids: "".join(f" w{i}" for i in ids)).strips
    assert [(t.text, t.learned, t.share) for t in first.tokens] == [(" w5", False, None), (" w6", True, 0.5),
                                                                    (" w7", True, -1.0)]  # fmt: skip
    assert first.tokens[1].title == "advantage 0.5, log-probability −0.5"
    assert [t.share for t in second.tokens] == [None, 1.0] and second.name == "part 2"


def test_a_reward_model_shows_its_calibration(tmp_path):
    run = write(tmp_path / "r")
    curve = {"pairs": [0.0, 3.0, 5.0], "confidence": [0.55, 0.65, 0.9], "right": [0.0, 0.6, 0.8]}
    (run / "calibration.json").write_text(json.dumps(curve))
    page = Page(render_run(run))
    assert "calibration" in [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    (plot,) = [json.loads(a["data-lines"]) for _, a in page.elements if a.get("data-x") == "confidence"]
    assert [len(points) for _, points in plot] == [2, 2], "an empty bin says nothing"


def test_a_run_without_a_step_has_a_page(tmp_path):
    (tmp_path / "config.toml").write_text("lr = 0.1\n")
    Page(render_run(tmp_path))


def test_thinning_keeps_both_ends_and_every_spike():
    points = [(i, 0.0) for i in range(10000)]
    points[4321], points[8765] = (4321, 9.0), (8765, -9.0)
    found = thinned(points)
    assert len(found) <= 610 and found[0] == points[0] and found[-1] == points[-1]
    assert (4321, 9.0) in found and (8765, -9.0) in found and found == sorted(found)


# -- side by side ------------------------------------------------------------------------------------------------------


def test_runs_side_by_side(tmp_path):
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", metrics=METRICS[:5], config="lr = 0.2\n[run]\nseed = 0\n")
    found = compare.sides([a, b])
    assert [side.name for side in found] == ["a", "b"] and [side.steps for side in found] == [10, 5]
    assert compare.differing(found) == {"lr": ["0.1", "0.2"]}
    assert compare.shared_metrics(found) == ["reward_mean", "loss"]
    assert compare.figures(found[0], "reward_mean") == (1.0, pytest.approx(0.5))
    page = Page(compare.render_comparison(found, ["reward_mean"], "again"))
    (lines,) = [json.loads(attrs["data-lines"]) for _, attrs in page.elements if "data-lines" in attrs]
    assert [(name, len(points)) for name, points in lines] == [("a", 10), ("b", 5)]


def changed(at, key, value):
    segments = [dict(s) for s in EPISODE["segments"]]
    segments[at] = segments[at] | {key: value}
    return [EPISODE | {"segments": segments}]


@pytest.mark.parametrize(
    ("what", "change", "said"),
    [
        ("setting", {"config": "lr = 0.1\n[run]\nseed = 1\n"}, "run.seed: 0 against 1"),
        ("data", {"rows": ("a 1", "c 3")}, "step 0, row 2 of 2: b 2 against c 3"),
        ("data", {"rows": ("a 1",)}, "step 0, row 2 of 2: b 2 against nothing"),
        ("samples", {"samples": changed(1, "tokens", [8, 4])}, "part 2, token 1: id 9 against id 4"),
        ("samples", {"samples": changed(0, "tokens", [5, 6, 7, 8])}, "part 1, token 3: the end against id 8"),
        ("samples", {"samples": changed(1, "logp", [None, -1.25])}, "but logp of token 1: -1.5 against -1.25"),
        ("samples", {"samples": [EPISODE | {"stop": "length"}]}, "stop: end against length"),
        ("metrics", {"metrics": [*METRICS[:4], METRICS[4] | {"loss": 0.3}]}, "step 4: loss 0.3333333333333333"),
    ],
)  # fmt: skip
def test_where_two_runs_part(tmp_path, what, change, said):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", **change)
    assert not any(f.differs for f in diff.findings(a, a))
    (found,) = [f for f in diff.findings(a, b) if f.differs]
    assert found.what == what and said in found.text


def test_a_shorter_run_is_no_difference_but_is_said(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", metrics=METRICS[:4])
    found = diff.findings(a, b)
    assert not any(f.differs for f in found)
    assert "one goes on to step 9, the other to step 3" in found[3].text


def test_half_a_line_is_not_read(tmp_path):
    assert len(list(folder.lines(write(tmp_path / "r"), "metrics.jsonl"))) == 10
