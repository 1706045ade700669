"""The report of a pipeline as one HTML page: what each stage changed, in numbers, in words and side by side.

`write_report` takes JSON-ready data and makes a single file that needs no network: styles, pictures and the little
script are inside. This module turns figures into columns and a headline; `report.html.jinja` only lays them out.
Whatever a model wrote is escaped, and the page's own policy lets no script run but the one it was made with. The
explanations under the curves are the glossary's (`train/metrics.py`). A missing part leaves its section out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from posttrain.pages import page
from posttrain.pages.plot import draw
from posttrain.pages.words import duration, number, share


@dataclass(frozen=True)
class Column:
    """One measure of the stage table."""

    key: str
    label: str
    meaning: str
    share: bool = True
    """A share between 0 and 1 with an interval and a bar; otherwise a number, with an interval or without."""
    digits: int = 0
    """Digits after the point of a plain number."""
    draw: bool = False
    """0.5 is a draw, and is marked."""


COLUMNS = (
    Column("well_formed", "Well formed", "answers that are one at all: finished, on one line, in known sentences"),
    Column("win_rate_base", "Over base", "how often gold prefers the answer to the base's; 50% is a draw", draw=True),
    Column("win_rate", "Over SFT", "how often gold prefers the answer to the SFT model's; 50% is a draw", draw=True),
    Column("greedy", "Solved", "tasks solved by the first line, the likeliest token taken each time"),
    Column("pass_at_8", "Pass@8", "tasks with at least one right answer among eight sampled ones"),
    Column(
        "kl_from_sft",
        "KL",
        "kl(stage ‖ SFT) in nats per answer: how far it moved from the SFT model",
        share=False,
        digits=2,
    ),
    Column("length", "Length", "mean tokens per answer", share=False, digits=1),
    Column("seconds", "Seconds", "time it took to train the stage", share=False),
)
"""The measures of the demo; a report may bring its own (`data["columns"]`, rows of `Column`)."""


@dataclass(frozen=True)
class Claim:
    """One part of the headline: what happened to a measure."""

    to: str
    """The stage that it is told of."""
    key: str
    words: str
    start: str | None = None
    """The stage before: "words from a to b". None: the words hold a place for the figure, {}."""
    digits: int | None = None
    """Digits of a plain number; None for a share."""


STORY = (
    Claim("sft", "well_formed", "demonstrations took well-formed answers", "base"),
    Claim("dpo", "win_rate", "preferences brought a win rate of {} against the SFT model"),
    Claim("grpo", "greedy", "rewards took solved tasks", "sft"),
)
"""The headline of the demo; a report may bring its own (`data["story"]`, rows of `Claim`)."""


def write_report(data: Mapping[str, Any], path: Path) -> None:
    """Write the report as one self-contained HTML file; folders in between are made.

    data: what `recipes/gather.py` puts together: title, command, seed, seconds, versions, peak_memory_mb, stages,
        columns, story, reward_model, samples, curves, checks, notes. Each may be missing, None or empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(data), encoding="utf-8", newline="\n")


def render(data: Mapping[str, Any]) -> str:
    """The page as text."""
    stages = data.get("stages") or []
    checks = sorted(data.get("checks") or [], key=lambda check: bool(check.get("ok")))
    table = tuple(Column(**c) for c in data.get("columns") or ()) or COLUMNS
    return page.render(
        "report.html.jinja",
        Path(__file__).parent,
        data=data,
        headline=headline(data),
        stages=stages,
        columns=[c for c in table if any(stage.get(c.key) is not None for stage in stages)],
        sizes={c.key: sizes for c in table if c.share and (sizes := _sizes(stages, c.key))},
        titles={stage.get("name"): stage.get("title") or stage.get("name") for stage in stages},
        plots=[plot for curve in data.get("curves") or [] if (plot := draw(curve))],
        checks=checks,
        failed=sum(not check.get("ok") for check in checks),
    )


# -- words ------------------------------------------------------------------------------------------------------------


def headline(data: Mapping[str, Any]) -> Markup:
    """The result in one sentence, made of the numbers that are there; empty when there are none.

    It says "from a to b", never "better", and adds when intervals overlap or when a win rate may be a draw.
    """
    stages = {stage.get("name"): stage for stage in data.get("stages") or []}
    claims = tuple(Claim(**c) for c in data.get("story") or ()) or STORY
    parts = [part for claim in claims if (part := _told(stages, claim))]
    if not parts:
        return Markup("")
    if len(parts) > 1:
        parts[-1] = "and " + parts[-1]
    text = Markup(", " if len(parts) > 2 else " ").join(parts)
    if data.get("seconds"):
        return Markup("In {}, {}.").format(duration(data["seconds"]), text)
    return text[:1].upper() + text[1:] + "."


def _told(stages: Mapping[str, Mapping], claim: Claim) -> Markup | None:
    after = stages.get(claim.to, {}).get(claim.key)
    before = stages.get(claim.start, {}).get(claim.key)
    if not after or (claim.start and not before):
        return None

    def figure(entry: Mapping) -> Markup:
        value = entry["value"]
        return Markup("<b>{}</b>").format(share(value) if claim.digits is None else number(value, claim.digits))

    def known(entry: Mapping) -> bool:
        return entry.get("low") is not None and entry.get("high") is not None

    if claim.start is None:
        draw = known(after) and claim.digits is None and after["low"] <= 0.5 <= after["high"]
        return Markup(claim.words).format(figure(after)) + (" (which may be a draw)" if draw else "")
    text = Markup("{} from {} to {}").format(claim.words, figure(before), figure(after))
    if known(before) and known(after) and before["low"] <= after["high"] and after["low"] <= before["high"]:
        text += " (their intervals overlap)"
    return text


def _sizes(stages: Sequence[Mapping], key: str) -> list[int]:
    """How many answers stand behind a column: one entry if all stages have the same number."""
    return sorted({stage[key]["n"] for stage in stages if stage.get(key) and stage[key].get("n") is not None})
