"""The reward of R1-Zero for answers that show their work: is the result right, and does the answer keep the form?

DeepSeek-AI 2025 (arXiv 2501.12948) pays accuracy and format equally, and asks for <think> and <answer>. The world
writes its work out in one line, "12+30=42, 42-7=35, so 35.", so that is the form here. No model judges either.
"""

import re

from posttrain.data.tasks import verify
from posttrain.records import Score, Stop, Task, Trajectory

SHOWN = ("sums", "chains", "countdown")
"""Tasks whose answers show their work."""
_LINE = re.compile(r"[^\n]*\d=\d[^\n]*, so (?P<answer>[^\n]+)\.")


def in_form(trajectory: Trajectory) -> bool:
    """Whether an answer is one finished line that works something out and then says what follows."""
    return trajectory.stop is Stop.END and _LINE.fullmatch(trajectory.completion.strip()) is not None


def worked(task: Task, trajectory: Trajectory) -> Score:
    """(accuracy + form) / 2: 1 for a right answer in form, 1/2 for only one of them. None where the task has no answer.

    Accuracy is the task's own verifier's. Tasks without anything to work out (facts, words, copying) have no form.
    """
    found = verify(task, trajectory.completion)
    if found.value is None or task.meta["task"] not in SHOWN:
        return found
    form = float(in_form(trajectory))
    why = f"{found.why}; {'in form' if form else 'not in form'}"
    return Score((found.value + form) / 2, {"accuracy": found.value, "form": form}, found.answer, why)
