"""From a data setting to rows: held out, cut, refused or left out with their place, and drawn by position alone."""

import json
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from posttrain.data.rows import Data, Rows, demonstrations, pairs, pick, report, steps_for, tasks, verdicts
from posttrain.errors import ConfigError, DataError
from posttrain.models.load import Loaded, load
from posttrain.records import Task


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("base", template="posttrain")


def write(path, items) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def demos(n: int, words: int = 3) -> list[dict]:
    return [{"prompt": f"Question {i}?", "completion": "yes " * words} for i in range(n)]


# --- reading ------------------------------------------------------------------------------------------------------


def test_the_last_rows_are_held_out(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", demos(10))
    found = demonstrations(Data(path=path, eval_rows=3), loaded)
    assert (len(found.train), len(found.held)) == (7, 3)
    assert "Question 7" in loaded.tokenizer.decode(found.held[0].tokens)
    assert found.longest == max(len(s.tokens) for s in found.train)


def test_a_limit_does_not_count_what_is_held_out(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", demos(10))
    found = demonstrations(Data(path=path, limit=4, eval_rows=3), loaded)
    assert (len(found.train), len(found.held)) == (4, 3)


def test_a_second_source_is_held_out_whole(tmp_path, loaded):
    a, b = write(tmp_path / "a.jsonl", demos(5)), write(tmp_path / "b.jsonl", demos(4))
    found = demonstrations(Data(path=a, eval_path=b), loaded)
    assert (len(found.train), len(found.held)) == (5, 4)
    assert len(demonstrations(Data(path=a, eval_path=b, eval_rows=2), loaded).held) == 2


def test_builtin_tasks_hold_out_of_the_test_split(loaded):
    found = tasks(Data(path="builtin:sums", limit=30, eval_rows=20), loaded)
    assert (len(found.train), len(found.held)) == (30, 20)
    assert not {t.prompt for t in found.train} & {t.prompt for t in found.held}
    assert all("-test-" in t.id for t in found.held)


def test_what_is_cut_is_counted(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", [*demos(2), *demos(1, words=40)])
    found = demonstrations(Data(path=path, max_len=24), loaded)
    assert found.truncated == 1 and found.longest == 24
    assert report(found).endswith("the longest of 24 tokens; 1 cut to fit")


def test_documents(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", [{"text": "One."}, {"text": "Two words."}])
    found = demonstrations(Data(path=path, kind="text"), loaded)
    assert all(all(s.mask[1:]) for s in found.train)


def test_pairs_are_numbered_through(tmp_path, loaded):
    items = [{"prompt": str(i), "chosen": "yes", "rejected": "no", "margin": i / 2} for i in range(5)]
    found = pairs(Data(path=write(tmp_path / "a.jsonl", items), eval_rows=2), loaded)
    assert [p.index for p in found.train + found.held] == [0, 1, 2, 3, 4]
    assert [p.margin for p in found.train] == [0.0, 0.5, 1.0]


# --- rows that do not fit -----------------------------------------------------------------------------------------


def long_prompts(loaded: Loaded) -> list[dict]:
    return [{"prompt": "Add 1 and 2.", "answer": "3"}, {"prompt": "word " * loaded.context, "answer": "3"}]


def test_a_prompt_without_room_is_told_with_its_place(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", long_prompts(loaded))
    with pytest.raises(DataError, match=r'a.jsonl, line 2: .*leaves no room .*data.on_bad_row = "skip"'):
        tasks(Data(path=path), loaded)


def test_skipped_rows_are_listed_and_do_not_count(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", long_prompts(loaded))
    found = tasks(Data(path=path, on_bad_row="skip"), loaded)
    assert len(found.train) == 1 and len(found.skipped) == 1 and found.longest < 30
    assert "1 left out: " in report(found) and "line 2" in report(found)


def test_nothing_left(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", long_prompts(loaded)[1:])
    with pytest.raises(DataError, match=r"no row is left to train on \(1 left out, 0 held out\). The first: .*line 1"):
        tasks(Data(path=path, on_bad_row="skip"), loaded)
    found = demonstrations(Data(path=write(tmp_path / "b.jsonl", demos(3)), eval_rows=3), loaded)
    assert (len(found.train), len(found.held)) == (3, 0)
    assert "0 held out (a fifth: 3 are too many to spare)" in report(found)


def test_a_length_beyond_the_context_is_refused(tmp_path, loaded):
    path = write(tmp_path / "a.jsonl", demos(3))
    with pytest.raises(ConfigError, match="max_len = 9999 exceeds the model's context of"):
        demonstrations(Data(path=path, max_len=9999), loaded)


@pytest.mark.parametrize(("field", "value"), [("eval_rows", -1), ("max_len", 1)])
def test_settings_without_a_meaning(field, value):
    with pytest.raises(ConfigError, match=f"data.{field} = {value}"):
        replace(Data(path="x.jsonl"), **{field: value})


# --- drawing ------------------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own():
    items = list(range(12))
    first = [r for step in range(3) for r in pick(items, step, 4, seed=7)]
    second = [r for step in range(3, 6) for r in pick(items, step, 4, seed=7)]
    assert sorted(first) == sorted(second) == items and first != second
    assert first != [r for step in range(3) for r in pick(items, step, 4, seed=8)]


def test_a_step_is_drawn_by_its_number_alone():
    items = list(range(50))
    assert pick(items, 17, 8, seed=1) == pick(items, 17, 8, seed=1)
    stream = [r for step in range(25) for r in pick(items, step, 8, seed=1)]
    assert stream[17 * 8 : 18 * 8] == pick(items, 17, 8, seed=1)
    assert set(Counter(stream).values()) == {4}


def test_a_batch_larger_than_the_data_repeats_rows():
    assert Counter(pick(["a", "b"], 0, 6, seed=0)) == {"a": 3, "b": 3}


@dataclass
class Length:
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 4


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(Length(), 3), (Length(epochs=2.0), 5), (Length(steps=9, epochs=2.0), 9), (Length(epochs=0.01), 1)],
)
def test_steps(length, wanted):
    assert steps_for(length, 10) == wanted


def test_report_of_a_plain_source():
    found = Rows([Task("t", ())] * 3, [], "x.jsonl", longest=9)
    assert report(found) == "3 rows of x.jsonl, the longest of 9 tokens"
    many = replace(found, skipped=("a", "b", "c", "d"))
    assert report(many).endswith("; 4 left out: a; b; c; ...")


def test_a_small_file_is_not_held_out_whole(tmp_path):
    """The defaults hold out 100 rows, and somebody's first file has forty."""
    path = tmp_path / "judged.jsonl"
    rows = [{"prompt": f"say {i}", "completion": "word", "label": i % 2 == 0} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load("base", template="plain")
    found = verdicts(Data(path=str(path), eval_rows=100), loaded)
    assert (len(found.train), len(found.held)) == (32, 8)
    assert "8 held out (a fifth: 100 are too many to spare)" in report(found)
    found = verdicts(Data(path=str(path), eval_rows=20), loaded)
    assert (len(found.train), len(found.held)) == (20, 20) and "too many" not in report(found)
