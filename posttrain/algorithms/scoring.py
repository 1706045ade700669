"""What a reward model says of rows of data: scores, gaps between them, and how far they can be believed."""

import json
from typing import Any

from torch import Tensor

from posttrain import dist
from posttrain.algorithms.ranked import ranking_batch
from posttrain.batch import TokenBatch, collate_pairs, weigh_rows
from posttrain.data.rows import PairRow, Rows
from posttrain.evals.scorer import drawn, reliability
from posttrain.objectives.average import Average
from posttrain.objectives.returns import last_token
from posttrain.records import Segment
from posttrain.rewards.model import SCALE
from posttrain.train.checkpoint import write_text
from posttrain.train.learner import Learner, Outputs
from posttrain.train.run import Run


def said(row: Any) -> tuple[Segment, ...]:
    """The answers of a pair or a ranking."""
    return row.pair if isinstance(row, PairRow) else row.answers


def make_batch(rows: list) -> TokenBatch:
    """Pairs or rankings as rows, with the weights of the step."""
    if not isinstance(rows[0], PairRow):
        return ranking_batch(rows)
    return weigh_rows(collate_pairs([r.pair for r in rows], [r.margin for r in rows]), Average("pair"), "pair")


def answer_scores(out: Outputs, b: TokenBatch) -> Tensor:
    """[N] value at the last token of each answer: its stop token, after everything was said."""
    return (out.values * last_token(b.mask)).sum(1)


def contrasts(b: TokenBatch) -> tuple[Tensor, Tensor]:
    """[M] rows of better answers and of worse ones to the same prompts, every two that differ."""
    worth = b.margin if b.label is None else b.label
    same = b.group[:, None] == b.group[None, :]
    better, worse = (same & (worth[:, None] > worth[None, :])).nonzero().T
    return better, worse


def gaps(scorer: Learner, rows: list) -> tuple[Tensor, Tensor, Tensor]:
    """Of all comparisons in some rows the gap between the scores, and the lengths of the better and the worse."""
    batch = make_batch(rows)
    scores, length = answer_scores(scorer.outputs(batch, ("values",)), batch), batch.mask.sum(1)
    better, worse = contrasts(batch)
    return scores[better] - scores[worse], length[better], length[worse]


def describe(run: Run, scorer: Learner, rows: Rows) -> None:
    """Write the scale and the calibration of the scores beside the model, and show the latter."""
    sample = rows.held or rows.train[:256]
    batch = make_batch(sample)
    scores = answer_scores(scorer.outputs(batch, ("values",)), batch)
    scale = {"mean": float(scores.mean()), "std": float(scores.std(correction=0)), "answers": len(scores)}
    dist.first(lambda: write_text(run.folder / SCALE, json.dumps(scale, indent=1)))
    if rows.held:
        curve = reliability(gaps(scorer, rows.held)[0])
        dist.first(lambda: write_text(run.folder / "calibration.json", json.dumps(curve, indent=1)))
        run.note(drawn(curve))
