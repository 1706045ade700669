"""The study of the leash on made-up cells: what its reader and its page make of them."""

import pytest

from posttrain.lab.studies.leash import BETAS, page, read, steering, tilt

BANK = {"page": [["Good.", 2, -1.0, 3.0, 0.0, 1.0], ["Bad.", 1, -2.0, 0.0, 4.0, 5.0]]}
RUN = {"page": {"path": [[1.0], [0.0], [0.5]], "end": [2.0, 1.0], "at": [[2.0, 9.0]], "said": ["Good."]}}


def cells(reward: float, kl: float, steady: float):
    bank = {f"{what}, β = {b:g}": x for b in BETAS for what, x in tilt([3.0, 3.0, 0.0], b).items()}
    runs = {f"β = {b:g}": {s: {"reward": reward, "kl": kl} for s in range(3)} for b in BETAS}
    return {"bank": dict.fromkeys(range(3), bank), **runs, "steered": {s: {"steady": steady} for s in range(3)}}


def test_the_reader_compares_each_run_with_its_tilt():
    by = {f.what: f for f in read(cells(tilt([3.0, 3.0, 0.0], 1.0)["reward"], 9.0, 2.1))}
    assert by["reward at β = 1: tilt, then run"].seen and by["KL that was steered"].seen
    assert not by["KL at β = 1: tilt, then run"].seen and not by["KL, β = 1, then 0.1"].seen
    assert not {f.what: f for f in read(cells(1.0, 1.0, 2.6))}["KL that was steered"].seen


def test_the_page_adds_up_what_the_seeds_found():
    made = page({"bank": {0: BANK["page"], 1: BANK["page"][:1]}, "β = 1": {0: RUN["page"]}})
    assert made["count"] == [4, 1] and made["reward"] == [3.0, 0.0] and made["text"] == {"0": "Good.", "1": "Bad."}
    assert (*made["x"], *made["y"]) == (0, 1000, 0, 1000)
    assert made["runs"]["β = 1"][0]["at"] == [[500, 1000]]


def test_beta_follows_the_kl_that_was_measured():
    assert steering([9.0, 9.0, 0.0], {"beta": 0.5, "target": None}) == [0.5] * 3
    assert steering([9.0, 2.0, 0.0], {"beta": 0.5, "target": 2.0}) == pytest.approx([0.5, 0.5125, 0.5125])
