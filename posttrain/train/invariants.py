"""The checks that run by default, because each names a way in which runs have silently learned nothing, or a lie.

Every function is pure and returns a `Check`; `Run.check` records it, says it aloud when it fails, and stops the run
when it is fatal. `posttrain doctor RUN` prints them. Fingerprints only read tensors; nothing here changes a model.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.records import Group, Segment, Stop
from posttrain.train.signal import scored

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = 5
"""Batches in a row without any learning signal before a run stops."""


@dataclass(frozen=True)
class Check:
    """One line of `posttrain doctor`: what was looked at, what was found, what to do if it is wrong."""

    name: str
    ok: bool
    value: str
    """What was found, with numbers."""
    advice: str
    """What to do when it is not ok."""
    fatal: bool = False
    """Going on would be pointless: `Run.check` raises InvariantError when such a check fails."""

    def record(self) -> dict[str, Any]:
        """The check as one JSON line."""
        return {"check": self.name, "ok": self.ok, "value": self.value, "advice": self.advice, "fatal": self.fatal}


def check_stop_ids(segments: Sequence[Segment], stop_ids: Iterable[int]) -> Check:
    """Every learned turn ends with a stop id inside the mask; else the model never learns to stop.

    A turn that truncation cut off at the segment's end is counted apart and does not fail the check.
    """
    stop_ids = set(stop_ids)
    turns, bad, cut, first = 0, 0, 0, ""
    for row, segment in enumerate(segments):
        ends = [t for t, on in enumerate(segment.mask) if on and _turn_ends(segment, t)]
        for t in ends:
            turns += 1
            if segment.tokens[t] in stop_ids:
                continue
            if segment.truncated and t == len(segment.tokens) - 1:
                cut += 1
                continue
            bad += 1
            first = first or f"; first: row {row}, token {t} (id {segment.tokens[t]})"
    return Check(
        "stop_token_is_learned",
        turns > 0 and bad == 0,
        f"{turns - bad - cut} of {turns} learned turns end with a stop id ({cut} cut off by truncation){first}",
        "The template must put its stop token inside the mask of each assistant turn; look with `posttrain data show`.",
        fatal=turns == 0,
    )


def _turn_ends(segment: Segment, t: int) -> bool:
    """Whether token t, which is masked in, is the last of its turn."""
    if t + 1 == len(segment.mask) or not segment.mask[t + 1]:
        return True
    return bool(segment.turn) and segment.turn[t + 1] != segment.turn[t]


def check_trainable(named_parameters: Iterable[tuple[str, "Tensor"]], optimizer: Any) -> Check:
    """Something is trainable, and the optimizer holds all of it (not some older copy of the parameters)."""
    wanted = [(name, p) for name, p in named_parameters if p.requires_grad]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in wanted if id(p) not in held]
    found = f"{sum(p.numel() for _, p in wanted):,} trainable values in {len(wanted)} tensors"
    if missing:
        found += f"; the optimizer lacks {len(missing)}, first {missing[0]}"
    return Check(
        "optimizer_covers_weights",
        bool(wanted) and not missing,
        found,
        "Freeze fewer parameters, or make the optimizer after adapters are added.",
        fatal=True,
    )


def fingerprint(named_tensors: Iterable[tuple[str, "Tensor"]]) -> dict[str, tuple[float, str]]:
    """Per block of the model: the sum of its weights in float64, and a hash of their bytes (blake2b, 16 hex digits).

    A block is a layer ("layers.3") or, outside the layers, the first part of the name ("embed"). Equal hashes mean
    equal weights, bit for bit; the sums say roughly where two models differ.
    """
    sums: dict[str, float] = {}
    hashes: dict[str, Any] = {}
    for name, tensor in sorted(named_tensors, key=lambda pair: pair[0]):
        block = block_of(name)
        value = tensor.detach().cpu().contiguous()
        hasher = hashes.setdefault(block, hashlib.blake2b(digest_size=8))
        hasher.update(name.encode())
        hasher.update(_bytes(value))
        sums[block] = sums.get(block, 0.0) + sum(float(part.sum()) for part in _doubles(value))
    return {block: (sums[block], hashes[block].hexdigest()) for block in sums}


def block_of(name: str) -> str:
    """The block a parameter belongs to: "model.layers.3.mlp.up.weight" -> "layers.3", "embed.weight" -> "embed"."""
    layer = re.search(r"(?:layers|blocks|h)\.(\d+)\.", name)
    if layer:
        return f"layers.{layer[1]}"
    return name.removeprefix("model.").split(".")[0]


def check_weights_changed(
    before: Mapping[str, tuple[float, str]], after: Mapping[str, tuple[float, str]], *, what: str = "the first step"
) -> Check:
    """Two fingerprints differ: an optimizer step really moved something."""
    moved = [block for block in after if before.get(block) != after[block]]
    return Check(
        "weights_changed",
        bool(moved),
        f"{len(moved)} of {len(after)} blocks changed in {what}",
        "Nothing was trained. Is the learning rate 0, are the adapters frozen, is every advantage or mask zero?",
        fatal=True,
    )


def check_weights_synced(learner: Mapping[str, tuple[float, str]], sampler: Mapping[str, tuple[float, str]]) -> Check:
    """The sampler holds the learner's weights, bit for bit."""
    stale = [block for block in learner if sampler.get(block) != learner[block]]
    return Check(
        "sampler_has_learner_weights",
        not stale,
        f"{len(stale)} of {len(learner)} blocks differ" + (f", first {stale[0]}" if stale else ""),
        "sampler.update(policy) did not reach the sampler; samples come from old weights.",
        fatal=True,
    )


def block_movement(before: Mapping[str, "Tensor"], after: Mapping[str, "Tensor"]) -> dict[str, float]:
    """By how much each block moved: ‖after - before‖ / ‖before‖, in float64 (the plain norm where before is zero).

    Of names that only one of the two has nothing is said.
    """
    moved: dict[str, list[float]] = {}
    for name in before:
        if name in after:
            sums = moved.setdefault(block_of(name), [0.0, 0.0])
            for old, new in zip(_doubles(before[name]), _doubles(after[name]), strict=True):
                sums[0] += float(((new - old) ** 2).sum())
                sums[1] += float((old**2).sum())
    return {block: math.sqrt(d) / (math.sqrt(n) or 1.0) for block, (d, n) in moved.items()}


def check_movement(moved: Mapping[str, float]) -> Check:
    """The end-of-run report on `block_movement`: which blocks stayed where they were."""
    still = [block for block, size in moved.items() if size == 0]
    value = ", ".join(f"{block} {size:.2%}" for block, size in moved.items())
    return Check(
        "blocks_moved",
        bool(moved) and not still,
        value or "no blocks",
        f"Unmoved: {', '.join(still)}. Right if you froze them." if still else "",
    )


def check_sampler_gap(mean_gap: float, max_gap: float, *, limit: float = 1e-4) -> Check:
    """Sampler and learner agree on the log-probabilities of the same tokens under the same weights.

    mean_gap, max_gap: |logp_sampler - logp_learner|, in nats. limit: for the mean; 1e-4 suits float32 in one process,
    0.02 a bfloat16 engine beside the learner.
    """
    ok = mean_gap <= limit  # false for NaN as well
    return Check(
        "sampler_agrees_with_learner",
        ok,
        f"mean gap {mean_gap:.2e}, largest {max_gap:.2e} nats (limit {limit:g})",
        "Stale weights, another temperature, a cut (top-k, top-p), or another precision; correct it with "
        "objective.mismatch, or find the cause.",
        fatal=not ok and not mean_gap < 100 * limit,
    )


def check_finite(name: str, value: float) -> Check:
    """A number is a number."""
    return Check(
        "finite",
        math.isfinite(value),
        f"{name} = {value}",
        "Lower the learning rate, clip gradients, or look at the samples of this step.",
        fatal=True,
    )


@dataclass(frozen=True)
class Signal:
    """How much a batch of groups can teach."""

    zero_variance: float
    """Share of groups (with two scored members or more) whose rewards are all equal."""
    clipped: float
    """Share of answers cut off by the token budget."""
    abstained: float
    """Share of answers that no grader could score."""
    silent: bool
    """No rewards that are compared differ, so that they give no gradient at all."""
    length: float
    """Mean number of tokens written."""
    reward: float
    """Mean reward of the scored answers; 0 where there are none."""


def reward_signal(groups: Sequence[Group], *, grouped: bool = True) -> Signal:
    """What the rewards of a scored batch of groups allow one to learn.

    grouped: answers are compared within their group only; else with a baseline or critic, over the whole batch.
    """
    members = [m for g in groups for m in g.members]
    values = [scored(g) for g in groups]
    comparable = [v for v in values if len(v) > 1]
    equal = sum(len(set(v)) == 1 for v in comparable)
    n = max(1, len(members))
    return Signal(
        zero_variance=equal / len(comparable) if comparable else 1.0,
        clipped=sum(m.stop == Stop.LENGTH for m in members) / n,
        abstained=(len(members) - sum(map(len, values))) / n,
        silent=equal == len(comparable) if grouped else len({x for v in values for x in v}) < 2,
        length=sum(m.length for m in members) / n,
        reward=sum(map(sum, values)) / max(1, sum(map(len, values))),
    )


def check_signal(
    signal: Signal, silent_before: int = 0, *, best: float | None = None, abstain_limit: float = 0.05
) -> tuple[list[Check], int]:
    """Checks on `reward_signal`, and how many batches in a row now had no signal (the loop keeps that number).

    best: the highest mean reward of an earlier batch that had a signal. Equal rewards above it mean that the tasks are
        solved, not that the grader is blind: such a batch teaches nothing, but does not count.

    Fatal when PATIENCE batches in a row were silent, and when more than `abstain_limit` of the answers could not be
    scored; the advice names the likely cause.
    """
    solved = signal.silent and best is not None and signal.reward > best
    silent = silent_before + 1 if signal.silent and not solved else 0
    if solved:
        cause = "Every answer gets the full reward: these tasks are solved, harder ones would teach more."
    elif signal.clipped > 0.9:
        cause = (
            f"{signal.clipped:.0%} of the answers were cut off at {signal.length:.0f} tokens: raise max_tokens, or "
            "train the stop token first (is the chat template the model's own?)."
        )
    else:
        cause = (
            "Every group has equal rewards: the tasks are all too hard, all too easy, or the verifier never (or "
            "always) accepts. Read samples.jsonl, and change the tasks, the group size or the temperature."
        )
    found = (
        f"{signal.zero_variance:.0%} of groups with equal rewards, {signal.clipped:.0%} of answers cut off, mean "
        f"length {signal.length:.0f}, {silent} silent batches in a row"
    )
    return [
        Check("reward_has_signal", solved or not signal.silent, found, cause, fatal=silent >= PATIENCE),
        Check(
            "answers_can_be_scored",
            signal.abstained <= abstain_limit,
            f"{signal.abstained:.1%} of answers could not be scored (limit {abstain_limit:.0%})",
            "The grader fails: samples.jsonl says why under score.why.",
            fatal=True,
        ),
    ], silent


def watch_signal(
    run: Any, step: int, groups: Sequence[Group], state: dict[str, Any], *, grouped: bool = True
) -> Signal:
    """Check the reward signal of a step in `run`, and keep its counts in the loop's `state` ("silent" and "best")."""
    signal = reward_signal(groups, grouped=grouped)
    checks, state["silent"] = check_signal(signal, state["silent"], best=state["best"])
    if not signal.silent and (state["best"] is None or signal.reward > state["best"]):
        state["best"] = signal.reward
    run.check(step, *(c for c in checks if not c.ok or step == 0))
    return signal


def _doubles(tensor: "Tensor") -> Iterator["Tensor"]:
    """The numbers in float64, four million at a time: a whole embedding would be gigabytes."""
    return (part.cpu().double() for part in tensor.detach().flatten().split(2**22))


def _bytes(tensor: "Tensor") -> memoryview:
    """The raw bytes of a contiguous CPU tensor; through uint8, since numpy knows no bfloat16."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy().data
