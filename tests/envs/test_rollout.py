"""The episode loop with scripted samplers and environments: streams of ids, stops, failures, seeds."""

import copy
import math
import random

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from posttrain import chat, rng
from posttrain.envs.base import Reply, SingleTurn
from posttrain.envs.rollout import rollout
from posttrain.errors import ConfigError, DataError, Interrupted, RolloutError
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Message, Stop, Task
from posttrain.sample.base import Completion, SamplingParams
from posttrain.sample.torch import TorchSampler

MARKS = ["<|endoftext|>", "<|pad|>", *(f"<|{name}|>" for name in ("system", "user", "assistant", "tool", "end"))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 350 tokens whose merges cross words."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the cat sat on the mat, too high, too low, right"] * 4, trainer)
    return Tokenizer(backend, {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})


def task(name: str = "t", text: str = "the cat") -> Task:
    return Task(name, (Message("user", text),), answer="mat")


class Script:
    """A sampler that says what it is told, and keeps what it was asked. Log-probabilities are -1, -2, ..."""

    version, context = 5, 1000

    def __init__(self, *turns: list[list[int]] | list[int], stop: Stop = Stop.END):
        self.turns, self.stop, self.asked = list(turns), stop, []

    def generate(self, prompts, params, seeds):
        self.asked.append(([list(p) for p in prompts], params, list(seeds)))
        said = self.turns[len(self.asked) - 1]
        rows = [said] * len(prompts) if isinstance(said[0], int) else said
        return [Completion(tuple(r), tuple(-1.0 - i for i in range(len(r))), (0.0,) * len(r), self.stop) for r in rows]


class Guess:
    """The policy guesses the word "mat"; the seed says how many guesses it has."""

    guesses = 9

    def start(self, task, seed):
        self.left, self.seed = self.guesses, seed
        return task.prompt

    def reply(self, said):
        self.left -= 1
        if said.content == "mat":
            return Reply(done=True, stop=Stop.TOOL, reward=1.0)
        if said.content == "crash":
            raise TimeoutError("no answer\nafter 2 s")
        return Reply((Message("tool", f"not {said.content}, {self.left} left"),), reward=-0.25)


def say(tokenizer, text) -> list[int]:
    """What a policy writes under the house template, whose answers begin with a space."""
    return [*tokenizer.encode(" " + text), tokenizer.token_id("<|end|>")]


def run(sampler, tokenizer, tasks=None, **changes):
    settings = {"n": 1, "params": SamplingParams(), "seed": 3, "template": chat.POSTTRAIN, "tokenizer": tokenizer}
    return rollout(sampler, tasks or [task()], **settings | changes)


def only(groups):
    (group,) = groups
    (member,) = group.members
    return member


# --- one turn ----------------------------------------------------------------------------------------------------


def test_one_turn_is_the_prompt_and_what_was_sampled(tokenizer):
    said = say(tokenizer, "sat")
    t = only(run(Script(said), tokenizer))
    prompt = chat.prompt(t.task.prompt, chat.POSTTRAIN, tokenizer)
    (s,) = t.segments
    assert list(s.tokens) == prompt + said
    assert s.mask == (False,) * len(prompt) + (True,) * len(said)
    assert all(map(math.isnan, s.logp[: len(prompt)])) and s.logp[len(prompt) :] == tuple(
        -1.0 - i for i in range(len(said))
    )
    assert all(map(math.isnan, s.kept[: len(prompt)])) and s.kept[len(prompt) :] == (0.0,) * len(said)
    assert s.turn == (0,) * len(prompt) + (1,) * len(said)
    assert (t.stop, t.version, t.temperature, t.completion, t.error) == (Stop.END, 5, 1.0, "sat", None)
    assert t.messages == (*t.task.prompt, Message("assistant", "sat"))


def test_groups_stand_in_the_order_of_tasks(tokenizer):
    asked = [task("a", "one"), task("b", "two")]
    words = ["p", "q", "r", "s", "t", "u"]
    groups = run(Script([say(tokenizer, w) for w in words]), tokenizer, asked, n=3, version=9)
    assert [g.task.id for g in groups] == ["a", "b"]
    assert [[m.completion for m in g.members] for g in groups] == [words[:3], words[3:]]
    assert {m.version for g in groups for m in g.members} == {9}


def test_stop_ids_of_the_template_are_asked_for(tokenizer):
    sampler = Script(say(tokenizer, "sat"))
    run(sampler, tokenizer, params=SamplingParams(stop_ids=(0,), temperature=0.5))
    assert sampler.asked[0][1].stop_ids == (tokenizer.token_id("<|end|>"), 0)
    greedy = only(run(Script(say(tokenizer, "sat")), tokenizer, params=SamplingParams(temperature=0.0)))
    assert greedy.temperature == 1.0


def test_an_answer_cut_off_is_told(tokenizer):
    t = only(run(Script(tokenizer.encode("sat on"), stop=Stop.LENGTH), tokenizer, env=Guess(), max_turns=3))
    assert (t.stop, t.completion, t.rewards) == (Stop.LENGTH, "sat on", ())


def test_the_seed_of_a_member_depends_on_its_place_alone(tokenizer):
    seeds = []
    for asked in ([task("a"), task("b")], [task("a"), task("b"), task("c")]):
        sampler = Script(say(tokenizer, "sat"))
        run(sampler, tokenizer, asked, n=2)
        seeds.append(sampler.asked[0][2])
    assert seeds[0] == seeds[1][:4]
    assert len(set(seeds[1])) == 6
    assert seeds[0][1] == rng.fold(rng.fold(3, 0, 1), "turn", 0)


# --- several turns -----------------------------------------------------------------------------------------------


def test_turns_make_one_stream_that_only_grows(tokenizer):
    words = ["cat", "the", "mat"]
    sampler = Script(*(say(tokenizer, w) for w in words))
    t = only(run(sampler, tokenizer, env=Guess(), max_turns=5))
    assert [m.content for m in t.messages] == ["the cat", "cat", "not cat, 8 left", "the", "not the, 7 left", "mat"]
    assert t.stop is Stop.TOOL
    (s,) = t.segments
    written = [token for token, m in zip(s.tokens, s.mask, strict=True) if m]
    assert written == [token for w in words for token in say(tokenizer, w)]
    for prompts, _, _ in sampler.asked:
        assert list(s.tokens[: len(prompts[0])]) == prompts[0]
    whole = chat.render(t.messages, chat.POSTTRAIN, tokenizer)[0]
    assert (s.tokens, s.mask) == (whole.tokens, whole.mask)
    assert [s.turn[i] for i in range(len(s.tokens)) if s.mask[i] and not s.mask[i - 1]] == [1, 3, 5]


def test_rewards_of_turns_stand_at_the_last_token_of_the_turn(tokenizer):
    t = only(run(Script(say(tokenizer, "cat"), say(tokenizer, "mat")), tokenizer, env=Guess(), max_turns=5))
    assert [value for _, _, value in t.rewards] == [-0.25, 1.0]
    for segment, place, _ in t.rewards:
        s = t.segments[segment]
        assert s.mask[place] and s.tokens[place] == tokenizer.token_id("<|end|>")


def test_what_was_sampled_is_never_encoded_again(tokenizer):
    """Random ids, among them bytes that are no text and splits that BPE would merge, come back as they were drawn."""
    draw, end = random.Random(0), tokenizer.token_id("<|end|>")
    for _ in range(50):
        turns = [[*(draw.randrange(len(MARKS), 350) for _ in range(draw.randint(1, 9))), end] for _ in range(3)]
        t = only(run(Script(*turns), tokenizer, env=Guess(), max_turns=3))
        (s,) = t.segments
        assert [token for token, m in zip(s.tokens, s.mask, strict=True) if m] == sum(turns, [])
        assert t.stop is Stop.TURNS and t.messages[-1].role == "assistant"
        assert len(s.tokens) == len(s.mask) == len(s.logp) == len(s.turn)


def test_finished_episodes_are_not_asked_again(tokenizer):
    sampler = Script(
        [say(tokenizer, w) for w in ("cat", "mat", "cat")],
        [say(tokenizer, w) for w in ("cat", "mat")],
        say(tokenizer, "mat"),
    )
    (group,) = run(sampler, tokenizer, n=3, env=Guess(), max_turns=3)
    assert [len(prompts) for prompts, _, _ in sampler.asked] == [3, 2, 1]
    assert [m.stop for m in group.members] == [Stop.TOOL] * 3
    assert [len(m.messages) for m in group.members] == [6, 2, 4]


def test_every_episode_has_its_own_environment(tokenizer):
    """Shallow copies: settings are shared, what `start` assigns is not; threads change nothing."""
    env = Guess()
    env.guesses = 4
    for workers in (1, 3):
        sampler = Script([say(tokenizer, "cat")] * 4, [say(tokenizer, "the")] * 4)
        (group,) = run(sampler, tokenizer, n=4, env=env, max_turns=2, workers=workers)
        assert [m.messages[2].content for m in group.members] == ["not cat, 3 left"] * 4
    assert not hasattr(env, "left")


def test_an_episode_that_outgrows_the_context_ends(tokenizer):
    sampler = Script(say(tokenizer, "cat"))
    sampler.context = len(chat.prompt(task().prompt, chat.POSTTRAIN, tokenizer)) + len(say(tokenizer, "cat")) + 3
    t = only(run(sampler, tokenizer, env=Guess(), max_turns=4))
    assert (t.stop, len(t.messages)) == (Stop.LENGTH, 2)


def test_a_template_that_forgets_thoughts_begins_a_second_segment(tokenizer):
    def thought(w):
        return [*tokenizer.encode(f"<think>hm</think>{w}"), tokenizer.token_id("<|end|>")]

    class Talk(Guess):
        def reply(self, said):
            return Reply((Message("user", "again"),), reward=0.5)

    t = only(run(Script(thought("cat"), thought("the")), tokenizer, env=Talk(), max_turns=2, keep_thinking=False))
    assert len(t.segments) == 2
    for s, w in zip(t.segments, ("cat", "the"), strict=True):
        assert [token for token, m in zip(s.tokens, s.mask, strict=True) if m] == thought(w)
    assert [segment for segment, _, _ in t.rewards] == [0, 1]
    assert "hm" not in tokenizer.decode(
        [x for x, m in zip(t.segments[1].tokens, t.segments[1].mask, strict=True) if not m]
    )


# --- failures ----------------------------------------------------------------------------------------------------


def test_an_environment_that_raises_makes_data(tokenizer):
    sampler = Script([say(tokenizer, w) for w in ("mat", "crash", "mat")])
    (group,) = run(sampler, tokenizer, n=3, env=Guess(), max_turns=2)
    assert [m.stop for m in group.members] == [Stop.TOOL, Stop.ERROR, Stop.TOOL]
    failed = group.members[1]
    assert failed.error == "Guess.reply raised TimeoutError: no answer\nafter 2 s"
    assert failed.completion == "crash" and sum(failed.segments[0].mask) == len(say(tokenizer, "crash"))


def test_an_environment_that_cannot_begin_makes_data_without_tokens(tokenizer):
    class Fussy(SingleTurn):
        def start(self, task, seed):
            if task.id == "bad":
                raise KeyError("no such level")
            return task.prompt

    groups = run(Script(say(tokenizer, "sat")), tokenizer, [task("bad"), task("good")], env=Fussy())
    assert [g.members[0].stop for g in groups] == [Stop.ERROR, Stop.END]
    assert groups[0].members[0].segments == () and "KeyError" in groups[0].members[0].error


def test_too_many_failures_stop_the_step_with_their_causes(tokenizer):
    sampler = Script([say(tokenizer, w) for w in ("crash", "crash", "mat")])
    with pytest.raises(
        RolloutError, match=r"2 of 3 rollouts failed \(2 x Guess.reply raised TimeoutError: no answer\)"
    ):
        run(sampler, tokenizer, n=3, env=Guess(), max_turns=2)
    sampler.asked.clear()
    run(sampler, tokenizer, n=3, env=Guess(), max_turns=2, max_failed=0.7)


def test_an_interrupt_is_no_failed_rollout(tokenizer):
    class Busy(SingleTurn):
        def reply(self, said):
            raise Interrupted("Ctrl-C")

    with pytest.raises(Interrupted):
        run(Script(say(tokenizer, "sat")), tokenizer, env=Busy())


def test_refusals(tokenizer):
    sampler = Script(say(tokenizer, "sat"))
    sampler.context = 4
    with pytest.raises(DataError, match='the prompt of task "t" has .* the context holds 4'):
        run(sampler, tokenizer)
    with pytest.raises(ConfigError, match="n = 0, max_turns = 1"):
        run(sampler, tokenizer, n=0)
    with pytest.raises(ValueError, match="the policy would speak to itself"):
        Reply()


# --- with the real sampler ---------------------------------------------------------------------------------------


def test_rollouts_are_a_function_of_their_seed(tokenizer):
    cfg = ModelConfig(
        vocab_size=350,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=120,
    )
    model = Decoder(cfg).double().initialise(0)
    with torch.no_grad():  # so that episodes end now and then
        model.embed_tokens.weight[tokenizer.token_id("<|end|>")] += 0.1
    settings = {"n": 4, "env": Guess(), "max_turns": 3, "params": SamplingParams(max_tokens=12)}
    one = run(TorchSampler(model), tokenizer, [task("a"), task("b", "on the")], **settings)
    other = run(TorchSampler(model, slots=3), tokenizer, [task("a"), task("b", "on the")], **copy.deepcopy(settings))
    tokens = [[s.tokens for m in g.members for s in m.segments] for g in one]
    assert tokens == [[s.tokens for m in g.members for s in m.segments] for g in other]
    assert len(set(tokens[0])) == 4
    assert tokens != [
        [s.tokens for m in g.members for s in m.segments]
        for g in run(TorchSampler(model), tokenizer, [task("a"), task("b", "on the")], **settings | {"seed": 4})
    ]
