"""Built-in templates: the mask covers exactly what the assistant says and its stop token."""

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from posttrain.chat import (
    CHATML,
    PLAIN,
    POSTTRAIN,
    TEMPLATES,
    Template,
    Turn,
    answer_text,
    follow_up,
    paint,
    prompt,
    render,
    render_answer,
    render_pair,
    render_text,
    stop_ids,
)
from posttrain.errors import ConfigError, DataError, ModelError
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message, Pair, Segment, ToolCall


def talk(*contents, system=None):
    roles = ("user", "assistant") * len(contents)
    first = [Message("system", system)] if system is not None else []
    return first + [Message(role, content) for role, content in zip(roles, contents, strict=False)]


def learned(segment, tokenizer):
    """The text of each maximal stretch of learned tokens."""
    stretches, last = [], -2
    for t, wanted in enumerate(segment.mask):
        if wanted:
            stretches += [[]] if t != last + 1 else []
            stretches[-1].append(segment.tokens[t])
            last = t
    return [tokenizer.decode(stretch) for stretch in stretches]


CONTENT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["<|end|>", "a<|im_end|>b", "<|endoftext|>", "\n", " ", "", "What is 2 + 2?", "<|assistant|>", "A: 4"]
)
CHATS = st.lists(CONTENT, min_size=2, max_size=7)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@FEW
@given(contents=CHATS, system=st.none() | CONTENT)
def test_mask_is_the_assistants_words_and_stop(template, contents, system, tokenizer):
    messages = talk(*contents, system=system)
    (segment,) = render(messages, template, tokenizer)
    said = [m.content for m in messages if m.role == "assistant"]
    assert learned(segment, tokenizer) == [template.lead + text + template.stop[0] for text in said]
    for i, message in enumerate(messages):
        if message.role == "assistant":
            mine = [t for t, turn in enumerate(segment.turn) if turn == i and segment.mask[t]]
            assert segment.tokens[mine[-1]] in stop_ids(template, tokenizer)
            assert sum(segment.tokens[t] in tokenizer.marks.values() for t in mine) == 1, (
                "content spelled a special token"
            )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@FEW
@given(contents=CHATS)
def test_more_turns_extend_fewer(template, contents, tokenizer):
    """Rendering k turns is a prefix of k + 1; each prompt is a prefix too, and what follows it is the learned turn."""
    messages = talk(*contents)
    whole = render(messages, template, tokenizer)[0]
    for k, message in enumerate(messages):
        if message.role == "assistant":
            asked = prompt(messages[:k], template, tokenizer)
            part = render(messages[: k + 1], template, tokenizer)[0]
            assert whole.tokens[: len(part.tokens)] == part.tokens and whole.mask[: len(part.mask)] == part.mask
            assert list(part.tokens[: len(asked)]) == asked
            assert all(part.mask[len(asked) :]) and not part.mask[len(asked) - 1]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@FEW
@given(contents=CHATS)
def test_follow_up_continues_the_stream(template, contents, tokenizer):
    """Prompt + sampled answer + follow-up = the ids of the next prompt: a rollout never encodes an answer again."""
    messages = talk(*contents)
    for k in range(1, len(messages) - 1, 2):
        stream = list(render(messages[: k + 1], template, tokenizer)[0].tokens)
        stream += follow_up(messages[: k + 1], messages[k + 1 : k + 2], template, tokenizer)
        assert stream == prompt(messages[: k + 2], template, tokenizer)


def test_house_template_by_hand(tokenizer):
    (segment,) = render(talk("Hi", "Yo", system="S"), POSTTRAIN, tokenizer)
    assert tokenizer.decode(segment.tokens) == "<|system|>S<|end|><|user|>Hi<|end|><|assistant|> Yo<|end|>"
    assert learned(segment, tokenizer) == [" Yo<|end|>"]
    assert [segment.turn[t] for t in (0, 3, len(segment.turn) - 1)] == [0, 1, 2]
    assert tokenizer.decode(prompt(talk("Hi"), POSTTRAIN, tokenizer)) == "<|user|>Hi<|end|><|assistant|>"


def test_plain_template_encodes_as_a_document_would_read(tokenizer):
    (segment,) = render(talk("Who are you?", "I am the cat."), PLAIN, tokenizer)
    assert tokenizer.decode(segment.tokens) == "Q: Who are you?\nA: I am the cat.<|endoftext|>"
    assert tokenizer.decode(prompt(talk("Who are you?"), PLAIN, tokenizer)) == "Q: Who are you?\nA:"


def test_chatml_newline_after_the_turn_is_not_learned(tokenizer):
    (segment,) = render(talk("a", "b", "c", "d"), CHATML, tokenizer)
    assert learned(segment, tokenizer) == ["b<|im_end|>", "d<|im_end|>"]
    assert stop_ids(CHATML, tokenizer) == (tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<|endoftext|>"))


def test_train_on(tokenizer):
    messages = [*talk("a", "b", "c", "d"), Message("user", "unanswered")]
    assert learned(render(messages, POSTTRAIN, tokenizer, train_on="last")[0], tokenizer) == [" d<|end|>"]
    (everything,) = render(messages, POSTTRAIN, tokenizer, train_on="all")
    assert everything.mask == (False,) + (True,) * (len(everything.tokens) - 1)
    assert "unanswered" in tokenizer.decode(everything.tokens)
    assert "unanswered" not in tokenizer.decode(render(messages, POSTTRAIN, tokenizer)[0].tokens)
    with pytest.raises(ValueError, match='"first" is not one of'):
        render(messages, POSTTRAIN, tokenizer, train_on="first")


def test_thoughts_kept_or_split(tokenizer):
    """Dropping earlier reasoning rewrites the context, so each turn is learned in the context it is served in."""
    messages = talk("a", "<think>deep</think>b", "c", "<think>er</think>d")
    (kept,) = render(messages, POSTTRAIN, tokenizer)
    assert learned(kept, tokenizer) == [" <think>deep</think>b<|end|>", " <think>er</think>d<|end|>"]
    first, second = render(messages, POSTTRAIN, tokenizer, keep_thinking=False)
    assert learned(first, tokenizer) == [" <think>deep</think>b<|end|>"]
    assert learned(second, tokenizer) == [" <think>er</think>d<|end|>"]
    assert "deep" not in tokenizer.decode(second.tokens)
    assert list(second.tokens[:-1])[: second.mask.index(True)] == prompt(
        messages[:3], POSTTRAIN, tokenizer, keep_thinking=False
    )
    assert follow_up(messages[:2], messages[2:3], POSTTRAIN, tokenizer, keep_thinking=False) is None
    assert len(render(talk("a", "b", "c", "d"), POSTTRAIN, tokenizer, keep_thinking=False)) == 1, "nothing to drop"


def test_thoughts_stay_while_tools_are_at_work(tokenizer):
    call = Message("assistant", "<think>look</think>", calls=(ToolCall("find", {"x": 1}),))
    messages = [Message("user", "q"), call, Message("tool", "7"), Message("assistant", "7")]
    (segment,) = render(messages, POSTTRAIN, tokenizer, keep_thinking=False)
    assert learned(segment, tokenizer) == [
        ' <think>look</think><tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call><|end|>',
        " 7<|end|>",
    ]


def test_truncation_is_counted_and_never_leaves_an_empty_mask(tokenizer):
    messages = talk("What is 2 + 2?", "The answer is 4.")
    (whole,) = render(messages, POSTTRAIN, tokenizer)
    start = whole.mask.index(True)
    (cut,) = render(messages, POSTTRAIN, tokenizer, max_len=start + 1)
    assert (len(cut.tokens), cut.truncated, sum(cut.mask)) == (start + 1, len(whole.tokens) - start - 1, 1)
    with pytest.raises(
        DataError, match=f"a.jsonl, line 3: the first {start} tokens are context, and max_len = {start}"
    ):
        render(messages, POSTTRAIN, tokenizer, max_len=start, where="a.jsonl, line 3")


def test_a_row_without_an_answer_is_named(tokenizer):
    with pytest.raises(DataError, match="line 9 has no token to learn"):
        render(talk("only a question"), POSTTRAIN, tokenizer, where="a.jsonl, line 9")
    with pytest.raises(DataError, match="no token to learn"):
        render_text("", tokenizer)


def test_prompt_refuses_to_answer_the_assistant(tokenizer):
    with pytest.raises(DataError, match="ends with an assistant message"):
        prompt(talk("a", "b"), POSTTRAIN, tokenizer)


def test_missing_special_token_names_template_and_remedy(tokenizer):
    other = Template(
        name="odd", turns={"user": Turn("", ""), "assistant": Turn("<|go|>", "<|stop|>")}, stop=("<|stop|>",)
    )
    with pytest.raises(ModelError, match=r'template "odd" needs the token <\|(go|stop)\|>'):
        render(talk("a", "b"), other, tokenizer)


def test_a_template_must_close_the_turn():
    with pytest.raises(ConfigError, match="would never stop"):
        Template(name="open", turns={"assistant": Turn("A:", "\n")}, stop=("<|end|>",))


def test_one_bos_where_the_tokenizer_adds_one(tokenizer):
    backend = tokenizers.Tokenizer.from_str(tokenizer._marked.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tok = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "<|endoftext|>"})
    messages = talk("<s>a", "b", "c", "d")
    (segment,) = render(messages, POSTTRAIN, tok)
    assert segment.tokens[0] == tok.bos_id and segment.tokens.count(tok.bos_id) == 1
    assert prompt(messages[:3], POSTTRAIN, tok) == list(segment.tokens[: len(prompt(messages[:3], POSTTRAIN, tok))])
    assert render_text("x", tok).tokens.count(tok.bos_id) == 1


def test_pad_equal_to_eos_leaves_the_stop_learned(tokenizer):
    tok = Tokenizer(tokenizer._marked, {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
    (segment,) = render(talk("a", "b"), PLAIN, tok)
    assert segment.tokens[-1] == tok.pad_id == tok.eos_id and segment.mask[-1]


def test_pair_shares_its_prompt(tokenizer):
    pair = Pair(tuple(talk("What is 2 + 2?")), (Message("assistant", "4"),), (Message("assistant", "\n5"),))
    for template in TEMPLATES.values():
        chosen, rejected = render_pair(pair, template, tokenizer)
        asked = prompt(pair.prompt, template, tokenizer)
        for side in (chosen, rejected):
            assert list(side.tokens[: len(asked)]) == asked
            assert side.mask == (False,) * len(asked) + (True,) * (len(side.tokens) - len(asked))


def test_answer_of_several_turns_masks_only_the_answer(tokenizer):
    messages = talk("a", "b", "c", "d", "e", "f")
    segment = render_answer(messages[:3], messages[3:], POSTTRAIN, tokenizer)
    assert learned(segment, tokenizer) == [" d<|end|>", " f<|end|>"]


def test_documents_learn_all_but_the_first_token(tokenizer):
    segment = render_text("the cat <|end|>", tokenizer, max_len=5)
    assert segment.mask == (False, True, True, True, True) and segment.truncated > 0
    whole = render_text("the cat", tokenizer)
    assert whole.tokens[-1] == tokenizer.eos_id and whole.mask[-1]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_answer_text_undoes_the_rendering(template, tokenizer):
    (segment,) = render(talk("q", "The answer is 4."), template, tokenizer)
    ids = [i for i, wanted in zip(segment.tokens, segment.mask, strict=True) if wanted]
    assert answer_text(ids, template, tokenizer) == "The answer is 4."
    assert answer_text(ids[:-1], template, tokenizer) == "The answer is 4.", "cut by length: no stop token"


def test_paint_shows_every_token_once(tokenizer):
    from rich.text import Text

    (segment,) = render(talk("[b]a[/b]", "line\nline"), POSTTRAIN, tokenizer)
    for every_token in (False, True):
        shown = Text.from_markup(paint(segment, tokenizer, every_token=every_token))
        assert shown.plain.startswith("<|user|>[b]a[/b]<|end|><|assistant|> line⏎\nline<|end|>\n")
        green = "".join(shown.plain[s.start : s.end] for s in shown.spans if "on" in str(s.style))
        assert green == " line⏎\nline<|end|>"
    cut = paint(Segment(tokens=segment.tokens, mask=segment.mask, truncated=3), tokenizer)
    assert f"{sum(segment.mask)} of {len(segment.tokens)} tokens are learned; 3 were cut off" in cut
