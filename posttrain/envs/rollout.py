"""The only episode loop: n trajectories for each task, all live episodes one turn at a time.

An episode is one append-only stream of token ids with a mask over what the policy chose. What the policy wrote is
decoded for the environment and never encoded again, so ids and log-probabilities cannot drift apart; only where a
template rewrites earlier turns does a second segment begin. An environment that raises makes a trajectory with
Stop.ERROR: a failed rollout is data, until too many have failed.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import nan

from posttrain import chat, dist, rng
from posttrain.envs.base import Env, Reply, SingleTurn
from posttrain.errors import ConfigError, DataError, Interrupted, RolloutError
from posttrain.models.tokenizers import Tokenizer
from posttrain.records import Group, Message, Segment, Stop, Task, Trajectory
from posttrain.sample.base import Completion, Sampler, SamplingParams


def rollout(
    sampler: Sampler,
    tasks: Sequence[Task],
    *,
    n: int,
    params: SamplingParams,
    seed: int,
    template: chat.Template | chat.JinjaTemplate,
    tokenizer: Tokenizer,
    env: Env | None = None,
    max_turns: int = 1,
    version: int | None = None,
    max_failed: float = 0.5,
    keep_thinking: bool | None = None,
    workers: int = 1,
) -> list[Group]:
    """One group of n trajectories per task, in order.

    params: the template's stop ids are added to its own; `max_tokens` limits each turn.
    seed: member j of task i draws from fold(seed, i, j), whatever else is in the batch.
    env: copied for every episode; default: one turn. max_turns: how often the policy may speak.
    version: of the weights; default: what the sampler says.
    max_failed: share of failed episodes above which the step is given up.
    keep_thinking: what becomes of reasoning in earlier turns, see `chat.prompt`.
    workers: threads in which environments answer; 1 asks one after the other.

    Several processes (`posttrain.dist`) write the groups of their share of the tasks, and all get all groups.

    Raises DataError for a task whose prompt leaves no room in the context, RolloutError where too many have failed.
    """
    if n < 1 or max_turns < 1 or workers < 1:
        raise ConfigError(f"n = {n}, max_turns = {max_turns}, workers = {workers}: each must be at least 1")
    params = replace(params, stop_ids=tuple(dict.fromkeys((*chat.stop_ids(template, tokenizer), *params.stop_ids))))
    writer = _Writer(template, tokenizer, keep_thinking, sampler.context)
    env = SingleTurn() if env is None else env
    version = sampler.version if version is None else version

    def write(share: Sequence[tuple[int, Task]]) -> list[Group]:
        episodes = [_Episode(task, copy.copy(env), rng.fold(seed, i, j)) for i, task in share for j in range(n)]
        _play(episodes, sampler, params, writer, max_turns, workers)
        done = [e.trajectory(version, params.recorded_temperature) for e in episodes]
        return [Group(task, tuple(done[i * n : (i + 1) * n])) for i, (_, task) in enumerate(share)]

    groups = dist.spread(list(enumerate(tasks)), write)
    _check_failures([m for g in groups for m in g.members], max_failed)
    return groups


def _play(
    episodes: Sequence["_Episode"],
    sampler: Sampler,
    params: SamplingParams,
    writer: "_Writer",
    max_turns: int,
    workers: int,
) -> None:
    """Turn by turn, until no episode is alive."""
    _each(episodes, _Episode.open, workers)
    writer.open(episodes)
    for turn in range(max_turns):
        live = [e for e in episodes if e.stop is None]
        if not live:
            break
        seeds = [rng.fold(e.seed, "turn", turn) for e in live]
        completions = sampler.generate([e.streams[-1].tokens for e in live], params, seeds)
        for e, completion in zip(live, completions, strict=True):
            e.hear(completion, writer)
        last = turn == max_turns - 1
        _each([e for e in live if e.stop is None], lambda e, last=last: e.ask(last), workers)
        for e in live:
            if e.stop is None:
                writer.go_on(e)


class _Stream:
    """A segment in the making."""

    def __init__(self):
        self.tokens: list[int] = []
        self.mask: list[bool] = []
        self.logp: list[float] = []
        self.kept: list[float] = []
        self.turn: list[int] = []

    def context(self, ids: Iterable[int], turn: int) -> None:
        ids = list(ids)
        self.tokens += ids
        self.mask += [False] * len(ids)
        self.logp += [nan] * len(ids)
        self.kept += [nan] * len(ids)
        self.turn += [turn] * len(ids)

    def written(self, c: Completion, turn: int) -> None:
        self.tokens += c.tokens
        self.mask += [True] * len(c.tokens)
        self.logp += c.logp
        self.kept += c.kept
        self.turn += [turn] * len(c.tokens)

    def segment(self) -> Segment:
        return Segment(*(tuple(x) for x in (self.tokens, self.mask, self.logp, self.kept, self.turn)))


class _Episode:
    """One trajectory in the making. `stop` is None while it lives."""

    def __init__(self, task: Task, env: Env, seed: int):
        self.task, self.env, self.seed = task, env, seed
        self.messages: tuple[Message, ...] = ()
        self.streams: list[_Stream] = []
        self.rewards: list[tuple[int, int, float]] = []
        self.added: tuple[Message, ...] = ()
        self.stop: Stop | None = None
        self.error: str | None = None

    def open(self) -> None:
        try:
            self.messages = tuple(self.env.start(self.task, self.seed))
        except Interrupted:
            raise
        except Exception as e:  # noqa: BLE001 - a failed rollout is data
            self.fail("start", e)

    def hear(self, completion: Completion, writer: "_Writer") -> None:
        """What the policy said, as ids and as a message."""
        self.streams[-1].written(completion, len(self.messages))
        self.messages += (Message("assistant", writer.text(completion)),)
        if completion.stop is not Stop.END:
            self.stop = completion.stop

    def ask(self, last: bool) -> None:
        """What the environment says to the last message."""
        try:
            reply: Reply = self.env.reply(self.messages[-1])
        except Interrupted:
            raise
        except Exception as e:  # noqa: BLE001 - a failed rollout is data
            self.fail("reply", e)
            return
        if reply.reward is not None:
            self.rewards.append((len(self.streams) - 1, len(self.streams[-1].tokens) - 1, float(reply.reward)))
        if reply.done or last:
            self.stop = reply.stop if reply.done else Stop.TURNS
        self.added = () if self.stop else reply.messages

    def fail(self, where: str, e: Exception) -> None:
        self.stop, self.error = Stop.ERROR, f"{type(self.env).__name__}.{where} raised {type(e).__name__}: {e}"

    def trajectory(self, version: int, temperature: float) -> Trajectory:
        return Trajectory(
            task=self.task,
            messages=self.messages,
            segments=tuple(s.segment() for s in self.streams),
            stop=self.stop,
            version=version,
            temperature=temperature,
            rewards=tuple(self.rewards),
            error=self.error,
        )


class _Writer:
    """Messages to ids, and ids to text, under one template."""

    def __init__(self, template, tokenizer: Tokenizer, keep_thinking: bool | None, context: int):
        self.template, self.tokenizer, self.keep_thinking, self.context = template, tokenizer, keep_thinking, context

    def open(self, episodes: Sequence[_Episode]) -> None:
        """The first stream of every episode that has begun. Equal openings of neighbours are encoded once."""
        before: tuple[Message, ...] | None = None
        ids: list[int] = []
        for e in episodes:
            if e.stop is not None:
                continue
            if e.messages != before:
                before, ids = e.messages, self.prompt(e.messages)
            if len(ids) >= self.context:
                raise DataError(
                    f'the prompt of task "{e.task.id}" has {len(ids)} tokens, but the context holds {self.context}, '
                    "one of them for an answer. Drop the task, shorten it, or use a model with a longer context."
                )
            e.streams.append(_Stream())
            e.streams[-1].context(ids, len(e.messages) - 1)

    def go_on(self, e: _Episode) -> None:
        """Append the environment's messages, in a new stream where the template rewrites what came before."""
        more = chat.follow_up(e.messages, e.added, self.template, self.tokenizer, keep_thinking=self.keep_thinking)
        stream, ids = (e.streams[-1], more) if more is not None else (_Stream(), self.prompt((*e.messages, *e.added)))
        if len(stream.tokens) + len(ids) >= self.context:
            e.stop = Stop.LENGTH
            return
        e.messages += e.added
        stream.context(ids, len(e.messages) - 1)
        if more is None:
            e.streams.append(stream)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return chat.prompt(messages, self.template, self.tokenizer, keep_thinking=self.keep_thinking)

    def text(self, completion: Completion) -> str:
        return chat.answer_text(completion.tokens, self.template, self.tokenizer)


def _each(episodes: Sequence[_Episode], do: Callable[[_Episode], None], workers: int) -> None:
    if workers == 1 or len(episodes) < 2:
        for e in episodes:
            do(e)
        return
    with ThreadPoolExecutor(min(workers, len(episodes))) as pool:
        list(pool.map(do, episodes))


def _check_failures(episodes: Sequence[Trajectory], max_failed: float) -> None:
    errors = Counter(e.error.splitlines()[0] for e in episodes if e.error is not None)
    failed = errors.total()
    if failed > max_failed * len(episodes):
        common = "; ".join(f"{count} x {text}" for text, count in errors.most_common(3))
        raise RolloutError(
            f"{failed} of {len(episodes)} rollouts failed ({common}). The limit is max_failed = {max_failed}. Repair "
            "the environment (or its tool's limits), or raise max_failed to go on with the others."
        )
