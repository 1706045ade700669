"""Lines of samples.jsonl: what the policy wrote, with masks, scores and advantages, for people to read."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain import rng
from posttrain.records import Group, Task, Trajectory

if TYPE_CHECKING:
    from posttrain.batch import TokenBatch


class Kept:
    """Some of a step's samples, which get their advantages once these are known."""

    def __init__(self, step: int = -1, items: Iterable[Any] = (), limit: int = 0, seed: int = 0):
        """Up to `limit` of the items, chosen by the seed and kept in their order.

        items: Groups (flattened), Trajectories, or dicts (passed on).
        """
        flat = [member for item in items for member in (item.members if isinstance(item, Group) else (item,))]
        self.step = step
        self._items = [flat[i] for i in sorted(rng.permutation(len(flat), seed)[:limit])] if flat else []
        self._advantage: dict[int, list[list[float]]] = {}

    def credit(self, members: Sequence[Trajectory], batch: "TokenBatch") -> None:
        """What each token was reinforced with. members: the trajectories that `batch.trajectory` counts.

        A trajectory is known by its segments, which stay the same object where its reward is changed.
        """
        wanted = {id(t.segments) for t in self._items if isinstance(t, Trajectory) and t.segments}
        for row, number in enumerate(batch.trajectory.tolist()):
            mark = id(members[number].segments)
            if mark in wanted:
                values = batch.advantage[row, : int(batch.attend[row].sum())].tolist()
                self._advantage.setdefault(mark, []).append(values)

    def records(self) -> Iterator[dict[str, Any]]:
        """The samples as lines of samples.jsonl."""
        for item in self._items:
            if isinstance(item, Trajectory):
                yield {"step": self.step, **trajectory(item, self._advantage.get(id(item.segments)))}
            else:
                yield {"step": self.step, **plain(item)}


def row_mark(row: Any) -> str:
    """A short digest of a row of data, after its name or number where it has one: equal rows have equal marks."""
    own = (row.id, row.prompt, row.answer) if isinstance(row, Task) else row
    name = getattr(row, "id", getattr(row, "index", ""))
    digest = hashlib.blake2b(repr(own).encode(), digest_size=5).hexdigest()
    return f"{name} {digest}".strip()


def trajectory(t: Trajectory, advantages: Sequence[Sequence[float]] | None = None) -> dict[str, Any]:
    """One episode as plain JSON: conversation, why it ended, score with its reasons, tokens with their mask.

    advantages: per token of each segment, where anything was learned from the episode.
    """
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
    for segment, values in zip(record["segments"], advantages or (), strict=False):
        segment["advantage"] = plain(values)
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
