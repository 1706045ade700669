"""What a batch of scored groups says about itself: the metrics of every loop that samples."""

from posttrain.records import Group, Stop
from posttrain.train.metrics import Metrics


def scored(group: Group) -> list[float]:
    """Rewards of the members that could be scored."""
    return [m.score.value for m in group.members if m.score is not None and m.score.value is not None]


def with_variance(groups: list[Group]) -> list[Group]:
    """Only the groups whose rewards differ: the others carry no gradient (DAPO's dynamic sampling, before refill)."""
    return [g for g in groups if len(set(scored(g))) > 1]


def group_metrics(groups: list[Group]) -> Metrics:
    """Rewards, lengths and shares over a batch of scored groups, as (sum, count)."""
    members = [m for g in groups for m in g.members]
    values = [v for g in groups for v in scored(g)]
    comparable = [v for g in groups if len(v := scored(g)) > 1]
    parts: dict[str, list[float]] = {}
    for m in members:
        for name, value in (m.score.parts if m.score else {}).items():
            parts.setdefault(f"reward_part_{name}", []).append(value)
    mean = sum(values) / max(len(values), 1)
    n = len(members)
    right = [m.length for m in members if m.score and m.score.value is not None and m.score.value >= 1.0]
    wrong = [m.length for m in members if m.score and m.score.value is not None and m.score.value < 1.0]
    return {
        "reward_mean": (sum(values), len(values)),
        "reward_std": ((sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5, 1),
        "zero_variance_share": (sum(len(set(v)) == 1 for v in comparable), max(len(comparable), 1)),
        "solved_share": (sum(max(v) > 0 for v in comparable), max(len(comparable), 1)),
        "abstained_share": (n - len(values), n),
        "failed_share": (sum(m.stop == Stop.ERROR for m in members), n),
        "length_mean": (sum(m.length for m in members), n),
        "length_right": (sum(right), len(right)),
        "length_wrong": (sum(wrong), len(wrong)),
        "clipped_at_length_share": (sum(m.stop == Stop.LENGTH for m in members), n),
        **({name: (sum(v), len(v)) for name, v in parts.items()} if len(parts) > 1 else {}),
    }
