"""`posttrain methods`: the table of all presets, and the comparison as a picture in the terminal and in HTML."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from posttrain.assets.two_prompts import ANSWERS, LONGEST, PROMPTS, step
from posttrain.cli.compare import differs, panels, render, signed
from posttrain.cli.formula import ADVANTAGES, RATIOS, WEIGHTS, equation, papers
from posttrain.cli.main import main
from posttrain.cli.methods import _short, differing, listing
from posttrain.objectives.advantages import ADVANTAGES as ALL_ADVANTAGES
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.presets import PRESETS
from posttrain.objectives.pull import token_pull
from posttrain.objectives.surrogate import RATIOS as ALL_RATIOS


def run(capsys, *words) -> tuple[int, str, str]:
    try:
        code = main(["methods", *map(str, words)])
    except SystemExit as left:
        code = left.code
    return code, *capsys.readouterr()


def test_the_table_has_every_preset_with_its_paper_in_100_columns(capsys):
    code, out, _ = run(capsys)
    assert code == 0 and out == run(capsys, "list")[1]
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    for name in PRESETS:
        (at,) = [i for i, line in enumerate(lines) if line.split(" ")[0] == name]
        assert re.search(r"(19|20)\d\d", lines[at + 1]), f"no paper under {name}"
    row = next(line for line in lines if line.startswith("grpo "))
    assert row.split() == ["grpo", "zscore", "token", "min", ".2", ".2", "sequence", "loss", "k3", ".04"]
    assert "Shao et al. 2024, arXiv 2402.03300" in lines[lines.index(row) + 1]
    dapo = lines.index(next(line for line in lines if line.startswith("dapo ")))
    assert lines[dapo + 1].endswith("arXiv 2503.14476; keep mixed")


def test_rows_below_say_what_the_columns_do_not():
    lines = list(
        listing({"icepop": PRESETS["icepop"], "dr_grpo": PRESETS["dr_grpo"], "reinforce": PRESETS["reinforce"]})
    )
    assert lines[2].endswith("; mismatch mask, low 0.5, high 5.0") and lines[4].endswith("; average horizon 3000")
    assert lines[6] == "    Williams 1992"


@pytest.mark.parametrize(
    "x, text", [(0.2, ".2"), (3e-4, "3e-4"), (2.5e-3, ".0025"), (10.0, "10"), (None, "-"), (0.0, "0"), (1.0, "1")]
)
def test_short_numbers(x, text):
    assert _short(x) == text


def test_papers_are_read_from_the_rows_they_stand_above():
    found = papers()
    assert set(found) == set(PRESETS)
    assert found["gspo"] == "Zheng et al. 2025, arXiv 2507.18071"
    assert found["reinforce_pp_baseline"] == found["reinforce_pp"] and found["kl_cov"] == found["clip_cov"]
    assert found["ppo"] == "Ouyang et al. 2022, arXiv 2203.02155" and found["reinforce"] == "Williams 1992"


def test_every_choice_has_its_formula():
    """A new advantage or ratio may go without, but then it is known here."""
    named = {"pass_at_k", "pass_at_k_zscore"}
    assert set(ALL_ADVANTAGES) - set(ADVANTAGES) == named
    assert set(ALL_RATIOS) - set(RATIOS) == {"none"} and set(WEIGHTS) == {
        "token",
        "sequence",
        "prompt",
        "constant",
        "sum",
    }


def test_equations():
    def whole(name):
        return list(equation(PRESETS[name]))

    assert whole("grpo") == [
        "L = Σ w · [ -min(ρA, clip(ρ, 0.8, 1.2)·A) + 0.04·k3(π, π_ref) ]",
        "ρ_t = π_t / π_old_t", "A = (r - mean) / std", "w = 1 / (answers · |y|)",
    ]  # fmt: skip
    assert whole("reinforce") == [
        "L = Σ w · [ -A·log π ]", "A_t = return - running mean, with r ← r - 0.03·k1(π, π_ref)", "w = 1 / answers",
    ]  # fmt: skip
    assert "(answers · 3000)" in whole("dr_grpo")[-1] and "1.0004" in whole("gspo")[0]
    assert "[tv gate] · ρA" in whole("dppo")[0] and whole("dppo")[1] == "ρ_t = π_t / μ_t"
    assert "mask(π_old/μ, 0.5, 5) · (-min" in whole("icepop")[0] and "3·A if A < 0" in whole("ppo_dual_clip")[0]
    assert "+ abs(π, π_old) [0.002 of tokens]" in whole("kl_cov")[0] and whole("skywork_or1")[0].endswith("- c·H ]")
    assert "0.001·ρ·k3" in whole("deepseek_v32")[0] and "[entropy, 0.2 of tokens]" in whole("high_entropy")[0]


def test_compare_in_words(capsys):
    code, out, _ = run(capsys, "compare", "grpo", "dr-grpo", "DAPO", "gspo")
    assert code == 0 and out == run(capsys, "compare")[1] and "\x1b" not in out
    flat = " ".join(out.split())
    shares = {}
    for name in ("grpo", "dr_grpo", "dapo", "gspo"):
        objective = PRESETS[name]
        if name == "dr_grpo":
            objective = replace(objective, average=replace(objective.average, horizon=LONGEST))
        whole = token_pull(objective, step()).whole.abs()
        shares[name] = float((whole[1].sum() + whole[3].sum()) / whole.sum())
    assert f"The two longest answers get {shares['grpo']:.0%} of all pull. It stops five tokens" in flat
    times = shares["dapo"] / shares["grpo"]
    assert f"dapo gives the two longest answers {shares['dapo']:.0%} of all pull, {times:.1f} times what grpo" in flat
    assert "It leaves out prompt 2, whose answers are all equal." in flat
    assert "It stops 14 tokens that had an advantage. All tokens of an answer are pulled alike." in flat
    assert "11 tokens without any advantage are moved by the leash or the penalty alone." in flat
    assert "differs in clip.high 0.28 (not 0.2), average.kind token (not sequence), kl.where none (not loss)" in flat
    assert [line for line in out.splitlines() if "average.kind " in line][0].split() == [
        "average.kind", "sequence", "constant", "token", "sequence",
    ]  # fmt: skip


def test_says_what_a_preset_leaves_open(capsys):
    assert "Its horizon is 10 here, the longest answer allowed." in " ".join(
        run(capsys, "compare", "dr_grpo")[1].split()
    )
    assert "Its sets have 2 answers here, of four." in " ".join(run(capsys, "compare", "pass_at_k")[1].split())
    (nothing,) = panels({"all": replace(PRESETS["icepop"], mismatch=Mismatch(kind="mask", low=1.0, high=1.0))})
    assert nothing.facts == ("all pulls at no token here.",) and nothing.largest == 0


def test_the_terminal_shows_every_number(capsys):
    out = run(capsys, "compare", "grpo")[1]
    lines = out[out.index("largest pull") :].splitlines()
    pull = token_pull(PRESETS["grpo"], step())
    whole = pull.whole * 38  # the tokens of the step
    assert lines[0] == f"largest pull {whole.abs().max():.2f}"
    rows = [line for line in lines if re.match(r"  \d (right|wrong)", line)]
    for n, (line, answer) in enumerate(zip(rows, ANSWERS, strict=True)):
        cells = re.findall(r"stop|[+-]\d?\.\d+", line)
        expected = ["stop" if pull.gain[n, t] == 0 != pull.advantage[n, t] else signed(float(whole[n, t]))
                    for t in range(1, len(answer.old) + 1)]  # fmt: skip
        assert cells == expected
    assert max(map(len, out.splitlines())) <= 100


def test_differences_of_choices_that_the_other_does_not_make():
    assert (
        differs(PRESETS["gpg"], PRESETS["maxrl"]) == "advantage center_live (not mean_ratio), clip.kind log (not none)"
    )
    assert "kl.where loss (not none), kl.beta 0.04, keep" in differs(PRESETS["grpo"], PRESETS["dapo"])
    assert differs(PRESETS["dapo"], PRESETS["grpo"]).count("kl.") == 1
    assert list(differing({"a": PRESETS["grpo"], "b": PRESETS["grpo"]})) == []


class Page(HTMLParser):
    """Collects what a page loads, and how its tags nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.bad = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in ("meta", "link", "line", "rect", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.bad.append(tag)


def test_the_page_needs_nothing_else_and_has_every_number(capsys, tmp_path):
    file = tmp_path / "new" / "compare.html"
    code, out, _ = run(capsys, "compare", "grpo", "gspo", "--html", file)
    assert code == 0 and f"wrote {file}" in out
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not page.bad
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset") and a[2] != "data:,"]
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    for panel in panels({name: PRESETS[name] for name in ("grpo", "gspo")}):
        for row in panel.rows:
            for cell in row.cells:
                if cell.state == "pull":
                    assert f"{cell.word}: pull {signed(cell.pull).replace('-', '−')}; advantage" in text
    titles = [a[2] for a in page.attributes if a[:2] == ("li", "title")]
    assert len(titles) == 2 * sum(len(a.old) for a in ANSWERS)
    assert sum(": stopped;" in t for t in titles) == 5 + 14
    assert all(prompt in text for prompt in PROMPTS) and "ρ_t = π_t / π_old_t" in text


def test_the_page_escapes_what_it_is_given():
    found = panels({"grpo": PRESETS["grpo"]})
    text = render(found, {}, "posttrain methods compare --html '<b>.html'")
    assert "&lt;b&gt;.html" in text and "<b>.html" not in text


def test_all_presets_can_be_compared():
    """Whatever choices there are, the picture has a state for every token and a sentence about the long answers."""
    found = panels(PRESETS)
    assert [p.name for p in found] == list(PRESETS)
    for panel in found:
        assert panel.facts and "of all pull" in panel.facts[0] and len(panel.equation) >= 3
        assert max(abs(c.share) for row in panel.rows for c in row.cells) == pytest.approx(1)
    page = Page(render(found, differing(dict(PRESETS)), "posttrain methods compare"))
    assert not page.open and not page.bad


def test_refusals(capsys):
    code, _, err = run(capsys, "list", "--html", "x.html")
    assert code == 2 and "posttrain methods [list | compare" in err
    assert 'Did you mean "gspo"?' in run(capsys, "compare", "gpso")[2]
    assert 'Did you mean "compare"?' in run(capsys, "compair")[2]
    assert run(capsys, "--help")[0] == 0 and run(capsys, "compare", "--help")[0] == 0
