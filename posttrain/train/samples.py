"""Lines of samples.jsonl: what the policy wrote, with masks, scores and advantages, for people to read."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from posttrain import rng
from posttrain.records import Group, Trajectory


def pick(
    items: Iterable[Any], advantages: Sequence[Sequence[float]] | None, limit: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Up to `limit` of the items as JSON-ready dicts, chosen by the seed and kept in their order.

    items: Groups (flattened), Trajectories, or dicts (passed on). advantages: one list per flattened trajectory.
    """
    flat = [member for item in items for member in (item.members if isinstance(item, Group) else (item,))]
    for i in sorted(rng.permutation(len(flat), seed)[:limit]):
        if isinstance(flat[i], Trajectory):
            yield trajectory(flat[i], advantages[i] if advantages is not None else None)
        else:
            yield plain(flat[i])


def trajectory(t: Trajectory, advantage: Sequence[float] | None = None) -> dict[str, Any]:
    """One episode as plain JSON: conversation, why it ended, score with its reasons, tokens with their mask."""
    record: dict[str, Any] = {
        "task": t.task.id,
        "messages": [
            {"role": m.role, "content": m.content}
            | ({"calls": [{"name": c.name, "arguments": plain(c.arguments)} for c in m.calls]} if m.calls else {})
            | ({"name": m.name} if m.name else {})
            for m in t.messages
        ],
        "stop": str(t.stop),
        "version": t.version,
        "length": t.length,
    }
    if t.task.answer is not None:
        record["gold"] = t.task.answer
    if t.score is not None:
        record["score"] = {
            "value": t.score.value,
            "parts": plain(t.score.parts),
            "answer": t.score.answer,
            "why": t.score.why,
        }
    if t.rewards:
        record["rewards"] = plain(t.rewards)
    if t.error is not None:
        record["error"] = t.error
    record["segments"] = [
        {"tokens": list(s.tokens), "mask": "".join("x" if m else "." for m in s.mask), "logp": plain(s.logp)}
        for s in t.segments
    ]
    if advantage is not None:
        record["advantage"] = plain(advantage)
    return record


def plain(value: Any) -> Any:
    """JSON-ready copy: tuples become lists, NaN and infinities null, tensors lists, unknown objects their text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
