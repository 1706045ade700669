"""Verifiable tasks: a prompt, a gold answer, and a verifier that reads what the model wrote without evaluating it.

Six tasks of the embedded world: `sums`, `chains`, `countdown`, `copy`, `facts` and `words`. The train split never
contains what the corpus holds out, the test split contains nothing else: held-out operands, held-out people, held-out
question families. `copy` has no held-out part; its two splits are independent streams of random words.
"""

import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Literal

from posttrain import rng as draws
from posttrain.assets.world import arithmetic, exercises, lexicon
from posttrain.assets.world.answers import fact_question
from posttrain.assets.world.people import HELD_OUT, PEOPLE, SEEN, parse, true
from posttrain.data.expressions import NotAnExpression, numbers_of, value_of
from posttrain.errors import ConfigError, nearest
from posttrain.records import Message, Score, Task

Split = Literal["train", "test"]
_DIGITS = {1: (2,), 2: (2, 2, 3), 3: (3,)}
_LENGTHS = {1: (3,), 2: (3, 3, 4, 4, 5), 3: (5,)}
_TOPS = {1: 8, 2: 12, 3: 12}


def tasks(name: str, n: int, seed: int = 0, split: Split = "train", difficulty: int = 2) -> list[Task]:
    """n tasks of one name, a pure function of the arguments.

    name: one of `NAMES`.
    split: "train" never poses a held-out problem, "test" poses only those.
    difficulty: 2 is the mixture of the corpus; 1 is its easy end (two-digit sums, three terms, numbers to 8, two
        words), 3 its hard end (three-digit sums, five terms, four words). `facts` and `words` have one difficulty.

    Raises ConfigError for an unknown name, split or difficulty.
    """
    if name not in _WRITERS:
        raise ConfigError(f"there is no task named {name!r}. {nearest(name, _WRITERS)}")
    if split not in ("train", "test"):
        raise ConfigError(f"split = {split!r} is not one of 'train', 'test'")
    if difficulty not in (1, 2, 3):
        raise ConfigError(f"difficulty = {difficulty!r}: use 1 (easy), 2 (as in the corpus) or 3 (hard)")
    made = []
    for i in range(n):
        rng = draws.python(seed, "task", name, split, i)
        prompt, answer, meta = _WRITERS[name](rng, split == "test", difficulty)
        meta = {"task": name, **meta}
        made.append(Task(f"{name}-{split}-{seed}-{i}", (Message("user", prompt),), answer, meta))
    return made


def _draw(make: Callable, held_out: bool):
    while (problem := make()).held_out != held_out:
        pass
    return problem


def _sums(rng: random.Random, test: bool, difficulty: int) -> tuple[str, str, dict]:
    problem = _draw(lambda: arithmetic.sum_problem(rng, _DIGITS[difficulty]), test)
    return arithmetic.PROMPTS[0].format(problem.text), str(problem.value), {"problem": problem.text}


def _chains(rng: random.Random, test: bool, difficulty: int) -> tuple[str, str, dict]:
    problem = _draw(lambda: arithmetic.chain_problem(rng, rng.choice(_LENGTHS[difficulty])), test)
    return arithmetic.PROMPTS[0].format(problem.text), str(problem.value), {"problem": problem.text}


def _countdown(rng: random.Random, test: bool, difficulty: int) -> tuple[str, str, dict]:
    game = _draw(lambda: arithmetic.countdown(rng, _TOPS[difficulty]), test)
    return f"{lexicon.capital(game.text)}.", game.solution, {"numbers": game.numbers, "target": game.target}


def _copy(rng: random.Random, test: bool, difficulty: int) -> tuple[str, str, dict]:
    item = exercises.copy_item(rng, {1: (2,), 2: (2, 3, 4), 3: (4,)}[difficulty])
    return item.question, item.answer, {}


def _facts(rng: random.Random, test: bool, difficulty: int) -> tuple[str, str, dict]:
    person = rng.choice(HELD_OUT if test else SEEN)
    question, attribute = fact_question(person, rng)
    return question, person.facts[attribute], {"person": person.name, "attribute": attribute}


def _words(rng: random.Random, test: bool, difficulty: int) -> tuple[str, str, dict]:
    family = rng.choice(lexicon.HELD_OUT_FAMILIES if test else lexicon.SEEN_FAMILIES)
    item = lexicon.FAMILIES[family](rng)
    return item.question, item.answer, {"family": family}


def verify(task: Task, text: str) -> Score:
    """Grade `text` as the answer to `task`: 1.0 right, 0.0 wrong, None when the task carries nothing to check against.

    sums, chains: the last whole number in the text equals the gold answer.
    countdown: what follows the last "so" (else the whole text), up to an equals sign, is one expression that uses
        exactly the given numbers, once each, and reaches the target; any solution counts.
    copy, words: the text equals the gold answer, but for outer spaces and one final full stop.
    facts: the text states the fact that was asked for in a sentence of the world, and no other fact contradicts.

    Raises ConfigError when `task.meta["task"]` is none of these.
    """
    name = task.meta.get("task")
    if name not in _VERIFIERS:
        raise ConfigError(
            f"task {task.id!r} has meta['task'] = {name!r}, which has no verifier. Known: {', '.join(NAMES)}"
        )
    if task.answer is None:
        return Score(None, why="the task has no gold answer")
    return _VERIFIERS[name](task, text)


_INTEGER = re.compile(r"(?:(?<![0-9)\]}])-)?[0-9]+(?:\.[0-9]+)?")


def last_number(text: str) -> str | None:
    """The last number in the text, without leading zeros; "7-5" ends in 5, "= -5" in -5, "1.5" is one number."""
    found = _INTEGER.findall(text)
    if not found:
        return None
    number = found[-1]
    return number if "." in number or len(number) > 30 else str(int(number))


def _verify_number(task: Task, text: str) -> Score:
    answer = last_number(text)
    if answer is None:
        return Score(0.0, why="no number in the answer")
    right = answer == task.answer
    return Score(float(right), answer=answer, why=f"{answer} is {'right' if right else f'not {task.answer}'}")


def _verify_countdown(task: Task, text: str) -> Score:
    wanted, target = sorted(task.meta["numbers"]), task.meta["target"]
    said = text.rpartition("so ")[2]  # what follows the last "so", or everything
    answer = said.partition("=")[0].strip().removesuffix(".")
    if not answer:
        return Score(0.0, why="no expression in the answer")
    try:
        value, used = value_of(answer), sorted(numbers_of(answer))
    except NotAnExpression as error:
        return Score(0.0, answer=answer, why=str(error))
    if used != wanted:
        return Score(0.0, answer=answer, why=f"uses {used}, not {wanted}")
    if value != Fraction(target):
        return Score(0.0, answer=answer, why=f"reaches {value}, not {target}")
    return Score(1.0, answer=answer, why=f"reaches {target}")


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").rstrip()


def _verify_text(task: Task, text: str) -> Score:
    answer, wanted = _plain(text), _plain(task.answer)
    right = answer == wanted
    return Score(float(right), answer=answer, why="as wanted" if right else f"{answer[:80]!r} is not {wanted!r}")


def _verify_fact(task: Task, text: str) -> Score:
    person, attribute = PEOPLE[task.meta["person"]], task.meta["attribute"]
    text = text.strip()
    if _plain(text) == task.answer:
        return Score(1.0, answer=task.answer, why="the bare value")
    said = [fact for part in re.findall(r"[^.!?\n]+[.!?]", text) for fact in parse(part.strip())]
    about = [fact for fact in said if fact.attribute == attribute]
    answer = about[-1].value if about else None
    if not about:
        return Score(0.0, why=f"no sentence about the {attribute}")
    if not all(true(fact, person) for fact in said):
        return Score(0.0, answer=answer, why="a stated fact is wrong or about somebody else")
    return Score(1.0, answer=answer, why=f"the {attribute} is right")


_WRITERS: Mapping[str, Callable[[random.Random, bool, int], tuple[str, str, dict]]] = {
    "sums": _sums,
    "chains": _chains,
    "countdown": _countdown,
    "copy": _copy,
    "facts": _facts,
    "words": _words,
}
_VERIFIERS: Mapping[str, Callable[[Task, str], Score]] = {
    "sums": _verify_number,
    "chains": _verify_number,
    "countdown": _verify_countdown,
    "copy": _verify_text,
    "facts": _verify_fact,
    "words": _verify_text,
}
NAMES = tuple(_WRITERS)
"""Names of the tasks."""
