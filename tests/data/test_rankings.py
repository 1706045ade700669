"""Rankings and verdicts as files have them, and as the world makes them."""

import json

import pytest

from posttrain.data.formats import Columns, ranking
from posttrain.data.sources import read
from posttrain.errors import DataError

SAID = ["good", "bad", "fair"]


def texts(found) -> list[str]:
    return [m.content for m in found.answers]


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        ({"prompt": "q", "answers": SAID, "scores": [3, 1, 2]}, (3, 1, 2)),
        ({"query": "q", "responses": SAID, "rewards": [0.5, -1, 0]}, (0.5, -1, 0)),  # as RRHF's own files
        ({"prompt": "q", "answers": SAID, "ranks": [1, 3, 2]}, (-1, -3, -2)),
        ({"instruction": "q", "completions": [{"response": t, "overall_score": i} for i, t in enumerate(SAID)]},
         (0, 1, 2)),
        ({"prompt": [{"role": "user", "content": "q"}], "answers": [{"role": "assistant", "content": t} for t in SAID],
          "scores": [3, 1, 2]}, (3, 1, 2)),
    ],
)  # fmt: skip
def test_layouts(row, scores):
    found = ranking(row, Columns(), "here")
    assert found.prompt[0].content == "q" and texts(found) == SAID and found.scores == scores


def test_a_pair_is_a_ranking_of_two():
    found = ranking({"prompt": "q", "chosen": "good", "rejected": "bad"}, Columns(), "here")
    assert texts(found) == ["good", "bad"] and found.scores == (1.0, 0.0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "answers": ["only"], "scores": [1]}, "not a list of at least two"),
        ({"prompt": "q", "answers": SAID, "scores": [1, 2]}, "one number for each of 3 answers"),
        ({"prompt": "q", "answers": SAID, "scores": [1, "2", 3]}, "a score is '2', not a number"),
        ({"prompt": "q", "answers": SAID}, "a score is None"),
        ({"prompt": "q", "answers": SAID, "scores": [1, float("nan"), 3]}, "a score is nan"),
    ],
)
def test_what_is_no_ranking(row, words):
    with pytest.raises(DataError, match=words):
        ranking(row, Columns(), "here")


def test_files_are_read(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"question": "q", "candidates": SAID, "scores": [3, 1, 2]}) + "\n")
    assert read(path, "ranking").records[0].scores == (3.0, 1.0, 2.0)
    path.write_text(json.dumps({"question": "q", "text": "t"}) + "\n")
    with pytest.raises(DataError, match="needs prompt and answers and scores"):
        read(path, "ranking")


def test_the_world_ranks_and_judges():
    ranked = read("builtin:rankings", "ranking", limit=20).records
    assert all(len(set(texts(r))) == len(set(r.scores)) == 4 for r in ranked)
    judged = read("builtin:verdicts", "judged", limit=20).records
    assert [r.good for r in judged] == [True, False] * 10
    pairs = read("builtin:preferences", "preference", limit=20).records
    assert all(j.answer == (p.chosen if j.good else p.rejected) for j, p in zip(judged, pairs, strict=True))
