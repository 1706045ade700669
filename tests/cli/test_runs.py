"""`posttrain runs`: each verb on runs of a real method, in the words of a user."""

from pathlib import Path

import pytest

from posttrain.cli.main import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of two steps; the third has another seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = "train sft --data.limit 8 --data.eval-rows 0 --batch-size 2 --steps 2".split()
        assert main([*words, "--run.threads", "1", "--run.seed", str(seed), "--out", str(folder / name)]) == 0
    return folder


def said(capsys, *words):
    code = main(["runs", *map(str, words)])
    return code, capsys.readouterr().out


def test_show_has_curves_samples_and_health(capsys, runs):
    code, out = said(capsys, "show", runs / "a", "--metrics", "grad_norm")
    assert code == 0 and "plan: 2 steps of 2 rows" in out
    assert "grad_norm" in out and "┤" in out and "sample of step 1" in out and "healthy" in out
    assert main(["runs", "show", str(runs / "a"), "--metrics", "gradnorm"]) == 2
    assert 'Did you mean "grad_norm"?' in capsys.readouterr().err


def test_compare_prints_and_writes_a_page(capsys, runs, tmp_path):
    code, out = said(capsys, "compare", runs / "a", runs / "c", "--html", tmp_path / "x.html")
    assert code == 0 and "run.seed" in out and "nll" in out and "o a   x c" in out
    assert "<!doctype html>" in (tmp_path / "x.html").read_text()
    assert main(["runs", "compare", str(runs / "a")]) == 2


def test_diff_of_equal_and_of_different_runs(capsys, runs):
    code, out = said(capsys, "diff", runs / "a", runs / "b")
    assert (code, out.splitlines()[-1]) == (0, "Nothing differs.")
    code, out = said(capsys, "diff", runs / "a", runs / "c")
    assert (
        code == 1 and "setting  run.seed: 0 against 1" in out and "They part in step 0, first seen in the data." in out
    )


def test_a_run_writes_its_report_and_it_can_be_written_again(capsys, runs, tmp_path):
    first = (runs / "a" / "report.html").read_text()
    code, _ = said(capsys, "report", runs / "a", "--out", tmp_path / "again.html")
    assert code == 0 and (tmp_path / "again.html").read_text() == first
    assert "run.threads" in first and "posttrain train sft" in first
    assert not list(Path(runs).glob("*.tmp"))


@pytest.mark.parametrize("verb", ["list", "show", "compare", "diff", "report"])
def test_every_verb_has_its_help(capsys, verb):
    with pytest.raises(SystemExit) as left:
        main(["runs", verb, "--help"])
    assert left.value.code == 0 and f"posttrain runs {verb}" in capsys.readouterr().out
    assert main(["runs", "--help"]) == 0
    assert f"posttrain runs {verb}" in capsys.readouterr().out
