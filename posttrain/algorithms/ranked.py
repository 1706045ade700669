"""Several answers to each prompt: as rows of a batch, and as the table [P, K] that losses on rankings take."""

import torch
from torch import Tensor

from posttrain.algorithms.sft import as_sample
from posttrain.batch import TokenBatch, collate, weigh_rows
from posttrain.data.rows import RankingRow
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.average import Average


def ranking_batch(rows: list[RankingRow]) -> TokenBatch:
    """All answers as rows, those of a prompt together and the best first, with scores and the weights of the step."""
    group = [i for i, row in enumerate(rows) for _ in row.answers]
    batch = collate([s for row in rows for s in row.answers], group=group)
    batch = batch.with_(margin=torch.tensor([x for row in rows for x in row.scores]))
    return weigh_rows(batch, Average("pair"), "pair")


class Table:
    """Where the rows of a batch stand in [P, K]: one line per group, in the order of its rows."""

    def __init__(self, group: Tensor):
        """group: [N] ids; the rows of a group stand together."""
        ids, self.prompt = group.unique(return_inverse=True)
        row = torch.arange(len(group), device=group.device)
        self.first = torch.full_like(ids, len(group)).scatter_reduce(0, self.prompt, row, "amin")
        """[P] the first row of each group."""
        self.place = row - self.first[self.prompt]
        self.mask = self(torch.ones_like(row)).bool()
        """[P, K] true where an answer stands."""

    def __call__(self, x: Tensor) -> Tensor:
        """Values [N] as [P, K], 0 where no answer stands."""
        return x.new_zeros(len(self.first), int(self.place.max()) + 1).index_put((self.prompt, self.place), x)


def ranking_sample(row: RankingRow, tokenizer: Tokenizer) -> dict:
    """A ranking for samples.jsonl."""
    return {"answers": [as_sample(s, tokenizer) for s in row.answers], "scores": row.scores}
