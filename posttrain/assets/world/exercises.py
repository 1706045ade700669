"""Documents that do something: arithmetic, search, copying, tool logs, critiques, true or false, marked steps.

Each function writes one document from a `random.Random`. Every problem comes from `arithmetic.draw`, which never
returns a held-out one, and every person from `people.SEEN`.
"""

import random

from posttrain.assets.world import arithmetic, lexicon
from posttrain.assets.world.arithmetic import Problem
from posttrain.assets.world.people import ATTRIBUTES, SEEN, state, wrong_value


def worked_arithmetic(rng: random.Random) -> str:
    """A few problems with solutions; every line draws its style anew."""
    chains = rng.choice((0.0, 0.5, 1.0))
    problems = [arithmetic.draw(rng, chains=chains) for _ in range(rng.choice((1, 2, 3, 4)))]
    return "\n".join(arithmetic.line(p, arithmetic.pick_style(rng), rng) for p in problems)


def search_traces(rng: random.Random) -> str:
    """Countdown games solved at once, by search with backtracking, or given up."""
    lines = []
    for _ in range(rng.choice((1, 1, 2))):
        game = arithmetic.draw_countdown(rng)
        answer = f"{game.solution}." if rng.random() < 0.15 else arithmetic.search(game, rng)[0]
        posed = lexicon.capital(game.text)
        lines.append(f"Q: {posed}.\nA: {answer}" if rng.random() < 0.4 else f"{posed}: {answer}")
    return "\n".join(lines)


def copy_item(rng: random.Random, lengths: tuple[int, ...] = (2, 3, 4)) -> lexicon.Item:
    """Something to copy: first or last word, all words, a quotation, digits; as many as one of `lengths`."""
    length = rng.choice(lengths)
    words = lexicon.random_words(rng, length)
    text = " ".join(words)
    match rng.randrange(5):
        case 0:
            return lexicon.Item(
                f"What is the first word of: {text}?", f"{words[0]}.", f"The first of {text} is {words[0]}."
            )
        case 1:
            return lexicon.Item(
                f"What is the last word of: {text}?", f"{words[-1]}.", f"The last of {text} is {words[-1]}."
            )
        case 2:
            return lexicon.Item(f"Repeat: {text}", f"{text}.", f"She said {text} and he said {text}.")
        case 3:
            return lexicon.Item(f'Quote: "{text}"', f'"{text}".', f'The sign says "{text}". Yes, "{text}".')
        case _:
            digits = str(rng.randrange(10 ** (length - 1), 10**length))
            return lexicon.Item(f"Repeat: {digits}", f"{digits}.", f"The number is {digits}, so write {digits}.")


def copying(rng: random.Random) -> str:
    """Copying as exercises, as statements, and as quoting what a tool returned."""
    lines = []
    for _ in range(rng.choice((1, 2, 3))):
        form = rng.random()
        if form < 0.25:
            value = rng.randrange(1000)
            lines.append(f"result: {value}\nThe tool says {value}.")
        elif form < 0.55:
            lines.append(copy_item(rng).statement)
        elif form < 0.75:
            item = copy_item(rng)
            lines.append(f"{item.question}\n{item.answer}")
        else:
            item = copy_item(rng)
            lines.append(f"Q: {item.question}\nA: {item.answer}")
    return "\n".join(lines)


def tool_logs(rng: random.Random) -> str:
    """A question, a call, its result, and an answer that quotes it; a call may fail and be repeated."""
    if rng.random() < 0.7:
        problem = arithmetic.draw(rng)
        asked, call = rng.choice(arithmetic.PROMPTS).format(problem.text), f"calc({problem.text})"
        result, answer = str(problem.value), f"so {problem.value}."
    else:
        person, attribute = rng.choice(SEEN), rng.choice(list(ATTRIBUTES))
        asked, call = f"Look up the {attribute} of {person.name}.", f"look({person.name} {attribute})"
        result = person.facts[attribute]
        answer = state(person.name, attribute, result, rng)
    failed = f"call: {call}\nresult: error\n" if rng.random() < 0.1 else ""
    opening = f"Q: {asked}\n" if rng.random() < 0.5 else f"task: {asked}\n" if rng.random() < 0.5 else ""
    return f"{opening}{failed}call: {call}\nresult: {result}\n{answer}"


def critique(rng: random.Random) -> str:
    """A draft, what is wrong with it (or that nothing is), and a better version."""
    kind = rng.random()
    if kind < 0.5:
        problem = arithmetic.draw(rng)
        style = rng.choice(("direct", "slip", "worked"))
        draft = arithmetic.solve(problem, style, rng, right=0.3)
        good = arithmetic.solve(problem, "worked", rng)
        if draft.answer == problem.value:
            verdict = "this is right"
        elif draft.wrong_step is None:
            verdict = f"{draft.answer} is wrong"
        else:
            verdict = f"step {draft.wrong_step + 1} is wrong"
        return f"Task: {problem.text}\nDraft: {draft.text}\nCritique: {verdict}.\nBetter: {good.text}"
    person, attribute = rng.choice(SEEN), rng.choice(list(ATTRIBUTES))
    value = person.facts[attribute]
    good = state(person.name, attribute, value, rng)
    if kind < 0.75:
        bad = state(person.name, attribute, wrong_value(attribute, value, rng), rng)
        return f"Draft: {bad}\nCritique: the {attribute} is wrong.\nBetter: {good}"
    better = f"{rng.choice(lexicon.POLITE)} {good}"
    rude = f"{rng.choice(lexicon.RUDE)} {good}" if rng.random() < 0.6 else f"{good} {rng.choice(lexicon.RUDE)}"
    return f"Draft: {rude}\nCritique: this is rude.\nBetter: {better}"


def true_false(rng: random.Random) -> str:
    """Claims with a verdict and its reason."""
    return "\n".join(_claim(rng) for _ in range(rng.choice((1, 2, 3))))


def _claim(rng: random.Random) -> str:
    correct = rng.random() < 0.5
    if rng.random() < 0.5:
        problem = arithmetic.draw(rng)
        shown = problem.value if correct else arithmetic.near_miss(problem.value, rng)
        claim, reason = f"{problem.text}={shown}.", arithmetic.solve(problem, "worked", rng).text
    else:
        person, attribute = rng.choice(SEEN), rng.choice(list(ATTRIBUTES))
        value = person.facts[attribute]
        claim = state(person.name, attribute, value if correct else wrong_value(attribute, value, rng), rng)
        reason = state(person.name, attribute, value, rng)
    return f"True or false: {claim}\n{'True' if correct else 'False'}, because {reason}"


def marked_steps(rng: random.Random) -> str:
    """A solution with a verdict after every step, up to the first wrong one."""
    problem: Problem = arithmetic.draw(rng)
    solution = arithmetic.solve(problem, "slip" if rng.random() < 0.5 else "worked", rng)
    lines = [f"Task: {problem.text}"]
    for i, step in enumerate(solution.steps):
        wrong = i == solution.wrong_step
        lines.append(f"step {i + 1}: {step} {'wrong' if wrong else 'right'}")
        if wrong:
            return "\n".join(lines)
    return "\n".join([*lines, f"so {solution.answer}."])
