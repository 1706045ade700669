"""Solutions whose steps are judged, as ids with a label at the end of each step.

A step is judged where it is finished, at the last token of the separator behind it, the last step's included: there a
process reward model has read the whole step and nothing of the next. Steps and separators are encoded apart, so that no
merge of the tokenizer can swallow a border. Section 20 of the book tells the story; the loss is
`posttrain.objectives.process_rewards`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.chat.render import prompt
from posttrain.chat.templates import JinjaTemplate, Template
from posttrain.errors import DataError
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Judged, Segment


@dataclass(frozen=True)
class Steps:
    """A solution in ids, with what is said of its steps."""

    segment: Segment
    """Prompt and steps; its mask is true at the judged tokens."""
    labels: tuple[float | None, ...]
    """One per token: at a judged token the probability that the step is right, else None."""


def label_steps(
    prompt: Sequence[int],
    steps: Sequence[Sequence[int]],
    labels: Sequence[float | None],
    separator: Sequence[int],
    *,
    max_len: int | None = None,
) -> Steps:
    """Ids of a prompt and its steps, each followed by the separator that carries the step's label.

    prompt: ids, with BOS and generation prompt where the model wants them. steps: ids of each. separator: ids, at least
        one; the label stands on the last.
    labels: one per step; None for a step that is not judged. An outcome model judges the last step alone, PRM800K none
        beyond the first error.
    max_len: cut from the right; `Segment.truncated` counts what was lost, labels with it.

    Raises DataError where steps and labels differ in number or the separator has no token.
    """
    if len(steps) != len(labels):
        raise DataError(f"{len(steps)} steps and {len(labels)} labels: each step needs its label, or None")
    if not separator:
        raise DataError("the separator of steps has no token, so no label can stand on it. Choose another")
    ids, found = list(prompt), [None] * len(prompt)
    for step, label in zip(steps, labels, strict=True):
        ids += [*step, *separator]
        found += [None] * (len(step) + len(separator) - 1) + [None if label is None else float(label)]
    kept = len(ids) if max_len is None else min(max_len, len(ids))
    mask = tuple(label is not None for label in found[:kept])
    return Steps(Segment(tuple(ids[:kept]), mask, truncated=len(ids) - kept), tuple(found[:kept]))


def render_steps(
    judged: Judged,
    template: Template | JinjaTemplate,
    tokenizer: Tokenizer,
    *,
    separator: str = "\n",
    max_len: int | None = None,
    where: str = "this solution",
) -> Steps:
    """A judged solution under a chat template: the prompt with generation prompt, then step after step.

    judged: its answer is one assistant message of steps parted by `separator`, as many as `judged.steps`.

    Raises DataError where they are not, or where max_len leaves no label.
    """
    if len(judged.answer) != 1 or judged.answer[0].calls:
        raise DataError(f"{where}: steps are judged in one assistant message without tool calls. Drop such rows")
    texts = judged.answer[0].content.removesuffix(separator).split(separator)
    if len(texts) != len(judged.steps):
        raise DataError(
            f"{where}: parted by {separator!r} the answer has {len(texts)} steps, and {len(judged.steps)} are judged. "
            "Give the separator that the data use, and no step that contains it"
        )
    before = prompt(judged.prompt, template, tokenizer)
    texts[0] = (template.lead if isinstance(template, Template) else "") + texts[0]
    ids = [tokenizer.encode(text, goes_on=i > 0 or not tokenizer.text_ends(before)) for i, text in enumerate(texts)]
    found = label_steps(before, ids, judged.steps, tokenizer.encode(separator, goes_on=True), max_len=max_len)
    if not any(found.segment.mask):
        raise DataError(f"{where}: max_len = {max_len} leaves no end of a step. Raise it, or drop such rows")
    return found
