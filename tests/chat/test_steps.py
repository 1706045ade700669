"""Judged steps as ids: a label stands on the last token of the separator behind its step, and nowhere else."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.chat import TEMPLATES, JinjaTemplate, label_steps, prompt, render_answer, render_steps
from posttrain.errors import DataError
from posttrain.records import Judged, Message

ASKED = (Message("user", "What is 2 + 2 + 2?"),)
TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=8), min_size=1, max_size=4)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def solution(*steps, verdicts=None, separator="\n"):
    verdicts = verdicts or tuple(i % 2 == 0 for i in range(len(steps)))
    return Judged(ASKED, (Message("assistant", separator.join(steps)),), all(verdicts), verdicts)


def test_label_steps_worked():
    found = label_steps([1, 2], [[3, 4], [], [5]], [True, None, 0.25], [8, 9])
    assert found.segment.tokens == (1, 2, 3, 4, 8, 9, 8, 9, 5, 8, 9)
    assert found.labels == (None, None, None, None, None, 1.0, None, None, None, None, 0.25)
    assert found.segment.mask == tuple(i in (5, 10) for i in range(11)) and found.segment.truncated == 0
    assert label_steps([], [[3]], [False], [9]).labels == (None, 0.0)


def test_what_is_cut_takes_its_label_along():
    found = label_steps([1, 2], [[3, 4], [5]], [True, False], [9], max_len=6)
    assert found.segment.tokens == (1, 2, 3, 4, 9, 5) and found.segment.truncated == 1
    assert found.labels == (None,) * 4 + (1.0, None) and found.segment.mask == (False,) * 4 + (True, False)
    assert label_steps([1, 2], [[3]], [True], [9], max_len=9).segment.truncated == 0
    assert not any(label_steps([1, 2], [[3]], [True], [9], max_len=1).segment.mask)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@FEW
@given(texts=TEXTS)
def test_each_step_is_read_whole_before_its_label(template, texts, tokenizer):
    judged = solution(*texts, verdicts=tuple(len(t) % 2 == 0 for t in texts))
    if judged.answer[0].content.endswith("\n"):
        return  # an empty last step cannot be told from a separator at the end
    found = render_steps(judged, template, tokenizer)
    before = len(prompt(ASKED, template, tokenizer))
    ids, start, lead = found.segment.tokens, before, template.lead
    for text, verdict in zip(texts, judged.steps, strict=True):
        end = next(t for t in range(start, len(ids)) if found.segment.mask[t])
        assert tokenizer.decode(ids[start : end + 1]) == lead + text + "\n"
        assert found.labels[end] == verdict
        start, lead = end + 1, ""
    assert start == len(ids) and not any(found.segment.mask[:before])
    assert [label is not None for label in found.labels] == list(found.segment.mask)


def test_a_solution_begins_as_an_answer_does(tokenizer):
    for template in TEMPLATES.values():
        judged = solution("2 + 2 is 4", "4 + 2 is 6")
        spoken = render_answer(judged.prompt, (Message("assistant", "2 + 2 is 4"),), template, tokenizer)
        said = spoken.tokens[: len(spoken.tokens) - 1]
        assert render_steps(judged, template, tokenizer).segment.tokens[: len(said)] == said


def test_jinja_templates_and_other_separators(tokenizer):
    template = JinjaTemplate(
        source="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        stop=("<|im_end|>",),
    )
    judged = solution("a\nb", "c<|im_end|>", separator="\n\n")
    found = render_steps(judged, template, tokenizer, separator="\n\n")
    before = prompt(ASKED, template, tokenizer)
    assert list(found.segment.tokens[: len(before)]) == before
    assert tokenizer.decode(found.segment.tokens[len(before) :]) == "a\nb\n\nc<|im_end|>\n\n"
    assert tokenizer.token_id("<|im_end|>") not in found.segment.tokens[len(before) :]
    assert [label for label in found.labels if label is not None] == [1.0, 0.0]


def test_a_separator_at_the_end_is_not_one_more_step(tokenizer):
    template = TEMPLATES["posttrain"]
    ends = Judged(ASKED, (Message("assistant", "a\nb\n"),), True, (True, True))
    assert render_steps(ends, template, tokenizer) == render_steps(
        solution("a", "b", verdicts=(True, True)), template, tokenizer
    )


def test_refusals(tokenizer):
    template = TEMPLATES["posttrain"]
    with pytest.raises(DataError, match="2 steps and 1 labels"):
        label_steps([1], [[2], [3]], [True], [9])
    with pytest.raises(DataError, match="no token"):
        label_steps([1], [[2]], [True], [])
    with pytest.raises(DataError, match="row 7.*has 2 steps, and 1 are judged"):
        render_steps(solution("a\nb", verdicts=(True,)), template, tokenizer, where="row 7")
    with pytest.raises(DataError, match="max_len = 3 leaves no end of a step"):
        render_steps(solution("a", "b"), template, tokenizer, max_len=3)
    two = Judged(ASKED, (Message("assistant", "a"), Message("assistant", "b")), True, (True, True))
    with pytest.raises(DataError, match="one assistant message"):
        render_steps(two, template, tokenizer)
