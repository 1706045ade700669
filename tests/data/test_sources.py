"""Reading data: every layout by hand, the real files in ../shared where present, and what each fault says."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from posttrain.data.formats import Columns
from posttrain.data.sources import batches, read, take
from posttrain.errors import ConfigError, DataError, MissingExtra
from posttrain.records import Example, Judged, Message, Pair, Task, Text, ToolCall

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def user(text):
    return Message("user", text)


def said(text):
    return Message("assistant", text)


def lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def one(tmp_path):
    """The single record that a single row gives."""

    def convert(row, kind, **columns):
        (record,) = read(lines(tmp_path / "d.jsonl", row), kind, columns=Columns(**columns)).records
        return record

    return convert


# --- files ---


def test_every_format_gives_the_same_records(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "é\u2028x"} for i in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
    (tmp_path / "e.json").write_text(text)  # lines under an array's suffix, as on the hub
    expected = [(user(f"q{i}"), said("é\u2028x")) for i in range(3)]
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.json.gz", "e.json"):
        source = read(tmp_path / name, "sft")
        assert [record.messages for record in source.records] == expected
        assert (source.skipped, source.columns_seen) == ((), ("prompt", "completion"))
    everything = read(f"{tmp_path}/*.jsonl*", "sft").records
    assert [r.meta["where"] for r in everything[2:4]] == ["a.jsonl, line 5", "b.jsonl.gz, line 1"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as parquet

    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "n": i} for i in (1, 2)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    records = read(tmp_path / "a.parquet", "sft").records
    assert records[1] == Example((user("a"), said("b")), {"where": "a.parquet, row 2", "n": 2})
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(tmp_path / "b.parquet", "sft")


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"posttrain\[data\].*convert the file"):
        read(tmp_path / "a.parquet", "sft")
    with pytest.raises(MissingExtra, match=r"posttrain\[data\]"):
        read("hf:some/set:train", "sft")


def test_hub_names(monkeypatch):
    """NAME, NAME:SPLIT and NAME@CONFIG:SPLIT, against a stand-in for the package."""
    asked = []

    class Hub:
        @staticmethod
        def load_dataset(*args, **kwargs):
            asked.append((*args, kwargs["split"]))
            return [{"text": "t"}]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    for name in ("hf:o/gsm8k", "hf:o/gsm8k:test", "hf:o/gsm8k@main:test"):
        assert read(name, "text").records == (Text("t", {"where": "hf:o/gsm8k, row 0"}),)
    assert asked == [("o/gsm8k", None, "train"), ("o/gsm8k", None, "test"), ("o/gsm8k", "main", "test")]


def test_limit_stops_early(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nnot json\n')
    assert [r.text for r in read(path, "text", limit=2).records] == ["a", "b"]


# --- demonstrations ---


def test_openai_messages(one):
    row = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "content": "7", "name": "f"},
            {"role": "assistant", "content": "7"},
        ],
        "source": "hand",
    }
    assert one(row, "sft") == Example(
        (
            Message("system", "s"),
            user("q"),
            Message("assistant", "", (ToolCall("f", {"x": 1}),)),
            Message("tool", "7", name="f"),
            said("7"),
        ),
        {"where": "d.jsonl, line 1", "source": "hand"},
    )


def test_sharegpt(one):
    call = '{"name": "f", "arguments": {"x": 1}}'
    turns = [("human", "q"), ("function_call", call), ("observation", "7"), ("gpt", "seven")]
    record = one({"conversations": [{"from": f, "value": v} for f, v in turns], "system": "s"}, "sft")
    assert [m.role for m in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.messages[2].calls == (ToolCall("f", {"x": 1}),)


def test_alpaca(one):
    record = one({"instruction": "Sort.", "input": "b a", "output": "a b"}, "sft")
    assert record.messages == (user("Sort.\n\nb a"), said("a b"))
    assert one({"instruction": "Sing.", "input": "", "output": "la"}, "sft").messages == (user("Sing."), said("la"))


def test_prompt_completion_and_text(one):
    assert one({"question": "q", "answer": "a"}, "sft").messages == (user("q"), said("a"))
    assert one(
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}, "sft"
    )
    assert one({"text": "once"}, "sft") == Text("once", {"where": "d.jsonl, line 1"})
    assert one({"frage": "q", "reply": "a"}, "sft", prompt="frage", completion="reply").messages == (
        user("q"),
        said("a"),
    )


def test_reasoning_parts_become_thoughts(one):
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "yes"}]
    record = one({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]}, "sft")
    assert record.messages[1] == said("<think>\nhm\n</think>\n\nyes")


# --- preferences ---


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {
            side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "a"), ("rejected", "b"))
        },
        {"prompt": "q"}
        | {
            side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", "a"), ("rejected", "b"))
        },
    ],
    ids=["strings", "messages", "sharegpt", "transcript", "implicit prompt", "prompt said twice"],
)
def test_pairs(one, row):
    assert one(row, "preference") == Pair((user("q"),), (said("a"),), (said("b"),), None, {"where": "d.jsonl, line 1"})


def test_margin_from_a_column_or_two_scores(one):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert one(row | {"margin": 2}, "preference").margin == 2.0
    assert one(row | {"score_chosen": 8.0, "score_rejected": 5.5}, "preference").margin == 2.5


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
        ({"chosen": "a", "rejected": "b"}, "without a prompt column"),
        (
            {"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "b"},
            "a whole conversation, the other",
        ),
        ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "a message is a str"),
        (
            {"prompt": "other"}
            | {
                s: [{"role": "user", "content": "q"}, {"role": "assistant", "content": s}]
                for s in ("chosen", "rejected")
            },
            "the prompt differs",
        ),
        ({"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "ends with a user message"),
    ],
)
def test_pairs_that_are_none(one, row, reason):
    with pytest.raises(DataError, match=f"d.jsonl, line 1: .*{reason}"):
        one(row, "preference")


# --- prompts and verdicts ---


def test_tasks(one):
    assert one({"question": "q", "answer": "so\n#### 72", "level": 2}, "prompt") == Task(
        "d.jsonl, line 1", (user("q"),), "72", {"where": "d.jsonl, line 1", "level": 2, "solution": "so\n#### 72"}
    )
    assert one({"id": 7, "problem": "p", "target": 3.5}, "prompt").answer == "3.5"
    assert one({"id": 7, "problem": "p"}, "prompt") == Task("7", (user("p"),), None, {"where": "d.jsonl, line 1"})
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert (one(chat, "prompt").prompt, one(chat, "prompt").answer) == ((user("q"),), "a")
    row = {"prompt": "q", "answer": "wrong", "gold": "right"}
    assert one(row, "prompt", answer="gold").answer == "right"
    assert one(row, "prompt", answer="gold").meta["answer"] == "wrong"


def test_verdicts(one):
    assert one({"prompt": "q", "completion": "a", "label": False}, "judged") == Judged(
        (user("q"),), (said("a"),), False
    )
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert one({"messages": chat, "label": 1}, "judged").good is True
    steps = one({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, "judged")
    assert (steps.answer, steps.steps, steps.good) == ((said("a\nb"),), (True, False), False)
    with pytest.raises(DataError, match="a label is 'yes', neither true nor false"):
        one({"messages": chat, "label": "yes"}, "judged")


# --- faults ---


def test_bad_rows_stop_with_the_first_five_or_are_skipped(tmp_path):
    good = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    bad = [
        '{"messages": [}',
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": "q"}]}',
        '{"messages": [{"role": "king", "content": "q"}]}',
        '{"other": 1}',
        "[1]",
        '{"messages": [{"role": "user", "content": 3}]}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([good, *bad, good]))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", "sft")
    text = str(caught.value)
    assert '7 of 9 rows are not of kind "sft"' in text and "and 2 more" in text and 'on_bad_row = "skip"' in text
    assert "a.jsonl, line 2: not valid JSON (Expecting value at column 15)" in text
    assert "a.jsonl, line 4: no assistant message to learn from" in text
    assert "a.jsonl, line 5: a message has the role 'king'" in text
    source = read(tmp_path / "a.jsonl", "sft", on_bad_row="skip")
    assert len(source.records) == 2 and len(source.skipped) == 7
    assert source.skipped[5] == "a.jsonl, line 7: the row is a list, not an object with columns"


def test_columns_that_are_not_there(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"promt": "q", "completion": "a"})
    with pytest.raises(DataError, match=r'Columns found: promt, completion. Did you mean columns.prompt = "promt"\?'):
        read(path, "sft")
    with pytest.raises(DataError, match=r'no column "compleson" \(columns.completion\).*Did you mean "completion"'):
        read(path, "sft", columns=Columns(prompt="promt", completion="compleson"))
    with pytest.raises(DataError, match="needs chosen and rejected.*columns.chosen = NAME"):
        read(path, "preference")


def test_files_that_cannot_be_read(tmp_path):
    lines(tmp_path / "train.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="tran.jsonl does not exist.*train.jsonl"):
        read(tmp_path / "tran.jsonl", "sft")
    with pytest.raises(DataError, match=r"is a folder \(with .jsonl\). Name a file or a pattern"):
        read(tmp_path, "sft")
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path / "e.jsonl", "sft")
    (tmp_path / "c.csv").write_text("a,b")
    with pytest.raises(DataError, match="of no format read here"):
        read(tmp_path / "c.csv", "sft")
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}' * 99)[:-9])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read(tmp_path / "g.jsonl.gz", "sft")
    (tmp_path / "l.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "l.jsonl", "sft")
    (tmp_path / "a.json").write_text('[{"text": "a"}, {"te')
    with pytest.raises(DataError, match="not valid JSON.*may be cut"):
        read(tmp_path / "a.json", "sft")


def test_unknown_words(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(ConfigError, match='Did you mean "preference"'):
        read(path, "preferences")
    with pytest.raises(ConfigError, match='"ignore" is not one of'):
        read(path, "sft", on_bad_row="ignore")
    with pytest.raises(ConfigError, match="limit = 0"):
        read(path, "sft", limit=0)
    with pytest.raises(ConfigError, match='Did you mean "demonstrations"'):
        read("builtin:demonstration", "sft")


# --- builtin data, and the order of use ---


def test_builtin_names():
    assert all(isinstance(r, Example) for r in read("builtin:demonstrations", "sft", limit=3).records)
    assert len(read("builtin:sums", "prompt", limit=4, seed=1).records) == 4
    calls = []
    source = read("builtin:mine", "sft", limit=5, seed=2, builtin=lambda *args: calls.append(args) or ["record"])
    assert (source.records, calls) == (("record",), [("mine", "sft", 5, 2)])


def test_order_is_a_function_of_seed_and_cursor():
    records = list("abcdefg")
    first = take(records, 0, 7, seed=1)
    assert sorted(first) == records and sorted(take(records, 7, 7, seed=1)) == records
    assert first != take(records, 7, 7, seed=1), "each epoch has its own order"
    assert take(records, 3, 9, seed=1) == take(records, 0, 12, seed=1)[3:]
    assert take(records, 0, 7, seed=2) != first != take(records, 0, 7, seed=1, stream="other")


def test_batches_resume_at_a_cursor():
    records, whole = list(range(10)), batches(list(range(10)), 4, seed=3)
    head = [next(whole) for _ in range(3)]
    rest = batches(records, 4, seed=3, start=head[1][0])
    assert next(rest) == head[2] and next(rest) == next(whole)
    with pytest.raises(DataError, match="no records"):
        take([], 0, 1, seed=0)


# --- the real files ---


@pytest.mark.parametrize(
    "name, kind, count, columns",
    [
        ("hh-rlhf/harmless-base-test.jsonl.gz", "preference", 2312, {}),
        ("preferences-demo/dpo_en_demo.json.gz", "preference", 300, {}),
        ("preferences-demo/kto_en_demo.json.gz", "judged", 300, {}),
        (
            "preferences-demo/stack_exchange_paired_tiny.json",
            "preference",
            25,
            {"chosen": "response_j", "rejected": "response_k"},
        ),
        ("sft-demo/alpaca_en_demo.json.gz", "sft", 999, {}),
        ("sft-demo/fastchat_dummy_conversation.json", "sft", 500, {}),
        ("sft-demo/identity.json", "sft", 91, {}),
        ("sft-demo/tinker_conversations.jsonl", "sft", 128, {}),
        ("tool-calling-demo/glaive_toolcall_en_demo.json.gz", "sft", 300, {}),
        ("tool-calling-demo/reason_tool_use_demo_50.jsonl.gz", "sft", 50, {}),
        ("gsm8k/train.jsonl.gz", "prompt", 7473, {}),
        ("gsm8k/test.jsonl", "prompt", 1028, {}),
        ("math/math500.jsonl", "prompt", 500, {}),
        ("pretrain-text/c4_demo.jsonl.gz", "text", 300, {}),
    ],
)
def test_real_files_are_read_whole(name, kind, count, columns):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no {path}")
    source = read(path, kind, columns=Columns(**columns))
    assert (len(source.records), source.skipped) == (count, ())
    if kind == "preference":
        assert all(p.prompt and p.chosen[-1].role == p.rejected[-1].role == "assistant" for p in source.records)
    if name.startswith("gsm8k"):
        assert all(t.answer.replace(",", "").lstrip("-").replace(".", "").isdigit() for t in source.records)


@pytest.mark.parametrize("name, kind", [("hh-rlhf/harmless-base-test.jsonl.gz", "preference"),
                                        ("tool-calling-demo/reason_tool_use_demo_50.jsonl.gz", "sft")])  # fmt: skip
def test_real_rows_render(name, kind):
    """From file to masked tokens, under a published tokenizer with ChatML's tokens."""
    import tokenizers

    from posttrain.chat import CHATML, render, render_pair
    from posttrain.models.tokenizers import Tokenizer

    backend = SHARED / "tokenizers" / "tiny_bpe_tokenizer.json"
    if not (SHARED / name).exists() or not backend.exists():
        pytest.skip(f"no {SHARED / name} or no {backend}")
    tok = Tokenizer(tokenizers.Tokenizer.from_file(str(backend)), {"eos_token": "<|im_end|>"})
    stop = tok.token_id("<|im_end|>")
    for record in read(SHARED / name, kind, limit=40).records:
        sides = render_pair(record, CHATML, tok) if kind == "preference" else render(record.messages, CHATML, tok)
        answers = [record.chosen, record.rejected] if kind == "preference" else [record.messages]
        for segment, messages in zip(sides, answers, strict=True):
            learned = [t for t, wanted in zip(segment.tokens, segment.mask, strict=True) if wanted]
            assert learned.count(stop) == sum(m.role == "assistant" for m in messages) and learned[-1] == stop
