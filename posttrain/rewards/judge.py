"""A language model as the grader of answers, its own among them: it is asked for a mark, and its odds are the reward.

Yuan et al. 2024 (arXiv 2401.10020) let a model write a mark; here the expected mark is read from its probabilities
(d-RLAIF: Lee et al. 2023, arXiv 2309.00267), which is finer, never fails to parse, and takes one pass. A small model
has little to say: look at the spread of the marks before believing them.
"""

from collections.abc import Sequence

import torch
from torch import nn

from posttrain import chat
from posttrain.batch import collate
from posttrain.errors import ConfigError
from posttrain.models.attention import pack, packed_attention
from posttrain.models.tokenizers import Tokenizer
from posttrain.objectives.preference import expected_rating
from posttrain.records import Group, Message, Score, Segment, Trajectory

MARKS = ("1", "2", "3", "4", "5")
RUBRIC = """Here is a question and an answer.

Question: {question}

Answer: {answer}

How good is the answer? Mark it from 1, useless, to 5, right, complete and well put. Write the mark alone."""


class LanguageJudge:
    """Grades all members of a group in one pass, with the weights that the model has at that moment."""

    def __init__(self, model: nn.Module, template, tokenizer: Tokenizer, rubric: str = RUBRIC):
        """rubric: text with {question} and {answer}. Raises ConfigError where two marks begin with the same token."""
        self.model, self.template, self.tokenizer, self.rubric = model, template, tokenizer, rubric
        self.marks = [tokenizer.encode(mark)[0] for mark in MARKS]
        if len(set(self.marks)) < len(MARKS):
            raise ConfigError(
                f"the marks {', '.join(MARKS)} do not begin with different tokens in this model's vocabulary, so it "
                "cannot judge by them. Use a reward model (reward = model:FOLDER) or a function of yours."
            )

    def __call__(self, group: Group) -> list[Score]:
        """An expected mark for each member, from -1 (the lowest) to 1 (the highest)."""
        marks = expected_rating(self.logp([self.question(m) for m in group.members])).tolist()
        return [Score(v, why=f"marked {1 + 2 * (v + 1):.2f} of {MARKS[-1]}") for v in marks]

    def question(self, trajectory: Trajectory) -> list[int]:
        """What the judge is asked about an answer, as ids. Of a conversation it reads what the user said last."""
        asked = next((m.content for m in reversed(trajectory.task.prompt) if m.role == "user"), "")
        text = self.rubric.format(question=asked, answer=trajectory.completion)
        ids = chat.prompt([Message("user", text)], self.template, self.tokenizer)
        room = self.model.cfg.max_position_embeddings
        if len(ids) > room:
            raise ConfigError(
                f"judging an answer takes {len(ids)} tokens, and the model's context holds {room}. Lower "
                "sampling.max_tokens, or use a reward model."
            )
        return ids

    @torch.inference_mode()
    def logp(self, questions: Sequence[Sequence[int]]) -> torch.Tensor:
        """[N, marks] log-probabilities of the marks after each question."""
        rows = [Segment(tokens=tuple(ids), mask=(False,) * len(ids)) for ids in questions]
        batch = collate(rows, group=[0] * len(rows))  # one group: what the questions share is computed once
        batch = batch.to(self.model.head_weight.device)
        packing = pack(batch.attend, batch.tokens, batch.group)
        hidden = self.model.flat(batch.tokens[packing.own], packing.positions, packed_attention(packing))
        ends = packing.place.gather(1, batch.lengths[:, None] - 1)[:, 0]
        return self.model.logits(hidden[ends]).float().log_softmax(-1)[:, self.marks]
