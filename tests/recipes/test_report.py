"""The report page: nothing a model wrote becomes markup, nothing is fetched, and every missing part is left out."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from posttrain.pages.plot import draw, ticks
from posttrain.pages.words import duration, interval, number, share
from posttrain.recipes.report import headline, render, write_report
from posttrain.train.metrics import METRICS

VOID = {"meta", "link", "br", "rect", "line", "circle", "path"}
ATTACK = '</p><script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Elements with their attributes, text per script, and whether every tag was closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.scripts, self.policy = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

    def having(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def estimate(value, low=None, high=None, n=100):
    return {"value": value, "low": low, "high": high, "n": n}


def stage(name, well_formed, greedy, win_rate=None, **more):
    measured = {"well_formed": well_formed, "greedy": greedy, "win_rate": win_rate}
    return {"name": name, "title": name.upper(), "folder": f"out/{name}", "seconds": 30.0, "note": ""} | measured | more


@pytest.fixture
def data():
    return {
        "title": "One small model",
        "command": "posttrain demo --out out --seed 0",
        "seed": 0,
        "seconds": 192.4,
        "versions": {"posttrain": "0.1.0", "torch": "2.13.0", "threads": 2},
        "peak_memory_mb": 812.4,
        "stages": [
            stage("base", estimate(0.07, 0.03, 0.14), estimate(0.04, 0.02, 0.1), seconds=None, length=41.2),
            stage("sft", estimate(0.98, 0.93, 0.995), estimate(0.21, 0.14, 0.3), kl_from_sft=0.0, length=17.8),
            stage("dpo", estimate(0.97, 0.92, 0.99), estimate(0.2, 0.13, 0.29), estimate(0.74, 0.66, 0.81)),
            stage("grpo", estimate(1.0, 0.96, 1.0), estimate(0.88, 0.8, 0.93), pass_at_8={"value": 0.94, "n": 100}),
        ],
        "reward_model": {
            "seconds": 23.0,
            "accuracy": estimate(0.7, 0.6, 0.78),
            "gold_agreement": estimate(0.66, 0.56, 0.74),
            "best_of_8": {
                "gold_mean_of_1": 1.26,
                "gold_best_of_8": 1.0,
                "proxy_mean_of_1": 0.26,
                "proxy_best_of_8": 0.93,
                "n": 64,
            },
        },
        "samples": [
            {
                "prompt": "What is 7+5?",
                "kind": "task",
                "answers": [
                    {"stage": "base", "text": ATTACK, "verdict": ATTACK, "good": False},
                    {"stage": "grpo", "text": "7+5=12", "verdict": "right: 12", "good": True},
                    {"stage": "sft", "text": "", "verdict": "", "good": None},
                ],
            }
        ],
        "curves": [
            {"title": ATTACK, "run": "grpo", "metric": "reward_mean", "points": [[i, i / 99] for i in range(100)]},
            {"title": "Unknown", "run": "grpo", "metric": "no_such_metric", "points": [[3, -0.5]]},
            {"title": "Empty", "run": "grpo", "metric": "loss", "points": []},
        ],
        "checks": [
            {"run": "sft", "check": "stop_token_is_learned", "ok": True, "value": "9 of 9", "advice": "unused advice"},
            {"run": "grpo", "check": "groups_have_signal", "ok": False, "value": ATTACK, "advice": "Easier tasks."},
        ],
        "notes": ["One seed."],
    }


def test_the_page_is_whole_and_says_what_it_was_given(data, tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(data, path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for words in ("One small model", "66–81%", "posttrain demo --out out --seed 0", "right: 12", "3 min 12 s", "−0.26"):
        assert words in text, words
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == [
        *("stages", "answers", "reward-model", "curves", "checks", "notes", "again")
    ]
    ids = page.having("id")
    assert len(ids) == len(set(ids)), "an id is there twice"
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(page.having(name)) <= set(ids)
    assert {link[1:] for link in page.having("href") if link.startswith("#")} <= set(ids)


def test_what_a_model_wrote_never_becomes_markup(data):
    data["title"] = data["command"] = data["notes"][0] = data["samples"][0]["prompt"] = ATTACK
    data["stages"][0]["title"] = data["stages"][0]["note"] = data["curves"][1]["metric"] = ATTACK
    page = Page(render(data))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "alert" not in "".join(page.scripts)
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_nothing_is_fetched_and_only_the_own_script_may_run(data):
    text = render(data)
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import", text)
    assert not page.having("src")
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'")


def test_minimal_data_leaves_the_sections_out(data):
    nothing = dict.fromkeys(data)
    for given in ({}, nothing, {name: type(value)() for name, value in data.items()}):
        page = Page(render(given))
        assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == ["again"]


@pytest.mark.parametrize("part", ["well_formed", "greedy", "win_rate", "pass_at_8", "length", "kl_from_sft", "seconds"])
def test_a_measure_that_no_stage_has_loses_its_column(data, part):
    with_it = render(data).count("<th ")
    for one in data["stages"]:
        one[part] = None
    text = render(data)
    Page(text)
    assert text.count("<th ") == with_it - 1


@pytest.mark.parametrize("part", ["seconds", "accuracy", "gold_agreement", "best_of_8"])
def test_a_reward_model_may_lack_any_number(data, part):
    data["reward_model"][part] = None
    Page(render(data))
    del data["reward_model"][part]
    Page(render(data))


def test_verdicts_are_words_and_marks_not_colour_alone(data):
    text = render(data)
    assert '<span class="good"><span aria-hidden="true">✓</span> right: 12</span>' in text
    assert text.index("failed</span>") < text.index("passed</span>"), "failures come first"
    assert "Easier tasks." in text and "unused advice" not in text
    assert "Checks: 1 of 2 failed" in text


def test_curves_carry_the_glossary(data):
    text = render(data)
    entry = METRICS["reward_mean"]
    for words in (entry.formula, entry.meaning, entry.healthy, entry.alarm):
        assert f"<dd>{words}</dd>" in text
    plots = [attrs for _, attrs in Page(text).elements if attrs.get("class") == "plot"]
    assert [len(json.loads(plot["data-lines"])[0][1]) for plot in plots] == [100, 1], "an empty curve is left out"


def test_the_headline_is_one_sentence_of_the_numbers(data):
    said = re.sub("<.*?>", "", headline(data))
    assert said == (
        "In 3 min 12 s, demonstrations took well-formed answers from 7% to 98%, preferences brought a win rate of 74% "
        "against the SFT model, and rewards took solved tasks from 21% to 88%."
    )


def test_the_headline_admits_what_the_intervals_do_not_show(data):
    data["stages"][2]["win_rate"] = estimate(0.53, 0.45, 0.61)
    data["stages"][3]["greedy"] = estimate(0.25, 0.17, 0.34)
    assert "(which may be a draw)" in headline(data)
    assert "<b>25%</b> (their intervals overlap)." in headline(data)
    data["seconds"], data["stages"] = None, data["stages"][:2]
    assert headline(data) == "Demonstrations took well-formed answers from <b>7%</b> to <b>98%</b>."


def test_numbers_in_words():
    assert [share(v) for v in (0, 0.0001, 0.004, 0.215, 0.884, 0.996, 0.9999, 1)] == [
        *("0%", "0.1%", "0.4%", "22%", "88%", "99.6%", "99.9%", "100%")
    ]
    assert [number(v) for v in (0, -0.5, 12345.6, 0.00012)] == ["0", "−0.5", "12,346", "0.00012"]
    assert [number(1.8, 2), number(-41.26, 1)] == ["1.80", "−41.3"]
    assert [duration(v) for v in (0.4, 41.2, 59.7, 192.4)] == ["0.4 s", "41 s", "1 min 0 s", "3 min 12 s"]
    assert duration(3840) == "1 h 4 min"
    assert interval({"low": 0.875, "high": 1}) == "88–100%" and interval({"value": 1}) == ""


@pytest.mark.parametrize("values", [[0, 1], [5, 5], [0, 0], [-3, -3], [-2, 4], [0.95, 0.97], [1e-5, 4e-4], [2e6, 9e6]])
def test_a_curve_lies_inside_its_frame_and_has_ticks(values):
    plot = draw({"title": "t", "metric": "loss", "points": list(enumerate(values))})
    left, top, right, bottom = plot.frame
    for x, y, _, _ in plot.lines[0].points:
        assert left <= x <= right and top <= y <= bottom
    assert 3 <= len(plot.y_ticks) <= 8 and all(top <= y <= bottom for y, _ in plot.y_ticks)
    labels = [words for _, words in plot.y_ticks]
    assert len(labels) == len(set(labels)), "two ticks read the same"
    assert plot.lines[0].points[0][1] >= plot.lines[0].points[-1][1], "more is higher, so its y is smaller"


def test_values_that_are_not_numbers_are_left_out_of_a_curve():
    plot = draw({"metric": "loss", "points": [[0, 1.0], [1, None], [2, float("nan")], [3, float("inf")], [4, 2.0]]})
    assert [step for _, _, step, _ in plot.lines[0].points] == ["0", "4"]
    assert draw({"metric": "loss", "points": [[0, None]]}) is None


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert ticks(7, 7) == [7]
