"""Reward models as the graders of a run: what `posttrain train reward_model` wrote, or sequence classifiers.

    model:FOLDER            one model, or the mean of the members of an ensemble's folder
    model:FOLDER,FOLDER     the mean of several
    model.min:...           the least of them (worst case)
    model.uwo=0.5:...       their mean less 0.5 times their variance (uncertainty-weighted)

The answer is read as text under each model's own template, so that its tokenizer need not be the policy's. The score is
the one at the end of the answer; an answer that was cut off has no end mark, and is judged without one. Members are put
on a common scale by what they said of the answers that they were tested on (`scores.json` in their runs).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from posttrain.batch import collate
from posttrain.chat.render import render
from posttrain.errors import ConfigError
from posttrain.models.attention import pack, packed_attention
from posttrain.models.heads import ScalarModel
from posttrain.models.load import Loaded, described, load
from posttrain.objectives.ensembles import ensemble_mean, uncertainty_weighted, worst_case
from posttrain.objectives.normalize import rescale
from posttrain.objectives.returns import last_token
from posttrain.records import Group, Score, Segment, Stop, Trajectory

SCALE = "scores.json"
"""In a reward model's run: mean and deviation of its scores of held-out answers."""
_NAME = re.compile(r"model(?:\.(?!py:)(\w+)(?:=([\d.]+))?)?:(.+)")  # model.py:function is the user's file


@dataclass(frozen=True)
class Judges:
    """The reward models that a reward's name stands for, and how several become one."""

    names: tuple[str, ...]
    """Runs, folders or hub names."""
    combine: Literal["mean", "min", "uwo"] = "mean"
    weight: float = 0.0
    """λ of "uwo"."""

    @classmethod
    def read(cls, reward: str) -> "Judges | None":
        """From `reward = "model..."`; None for other rewards. Raises ConfigError for another way to combine."""
        found = _NAME.fullmatch(reward)
        if found is None:
            return None
        how, weight, names = found.groups()
        if how not in (None, "mean", "min", "uwo") or (how == "uwo") != (weight is not None):
            raise ConfigError(
                f'reward = "{reward}": several reward models are combined as model:, model.min: or model.uwo=0.5: (the '
                "weight of their variance), followed by their folders."
            )
        members = tuple(m for name in names.split(",") for m in _members(name.strip()))
        if how in ("min", "uwo") and len(members) < 2:
            raise ConfigError(
                f'reward = "{reward}": {names} is one reward model, and "{how}" is about several. Train them with '
                "`posttrain train reward_model --members 4`, or name them with commas between."
            )
        return cls(members, how or "mean", float(weight or 0.0))


def _members(name: str) -> list[str]:
    """The runs inside an ensemble's folder; any other name stands for itself."""
    inside = [p for p in Path(name).glob("member-*") if (p / "config.toml").is_file()]
    return [str(p) for p in sorted(inside, key=lambda p: int(p.name.removeprefix("member-")))] or [name]


class ModelReward:
    """Grades all members of a group in one pass per model; wrap it in `GroupReward`."""

    def __init__(self, judges: Judges):
        """Raises ConfigError where a name is that of a model without a scalar head."""
        self.judges, self.loaded = judges, [load(name) for name in judges.names]
        for name, loaded in zip(judges.names, self.loaded, strict=True):
            if not isinstance(loaded.model, ScalarModel):
                raise ConfigError(
                    f'reward = "model:{name}": this model has no scalar head, so it cannot score an answer. Train one '
                    "with `posttrain train reward_model`, or name its folder."
                )
            loaded.model.requires_grad_(False).eval()
        self.scales = [] if len(judges.names) == 1 else [scale_of(name) for name in judges.names]

    def __call__(self, group: Group) -> list[Score]:
        """A score for each member; of several models, with the deviation between them as a part."""
        table = torch.tensor([scores(x.model, [segment(m, x) for m in group.members]) for x in self.loaded])
        if len(table) == 1:
            return [Score(v, why=f"{v:.3f} by {self.judges.names[0]}") for v in table[0].tolist()]
        table, spread = self.on_one_scale(table), table.std(0, correction=0)
        combined, spread = self.combined(table).tolist(), spread.tolist()
        n, how = len(table), self.judges.combine
        return [
            Score(v, parts={"value": v, "std": s}, why=f"{v:.3f} ± {s:.3f}, {how} of {n} reward models")
            for v, s in zip(combined, spread, strict=True)
        ]

    def on_one_scale(self, table: Tensor) -> Tensor:
        """Scores [M, B] with equal means and deviations on the answers that the members were tested on."""
        if not all(self.scales):
            return table
        width = sum(scale["std"] for scale in self.scales) / len(self.scales)
        rows = zip(table, self.scales, strict=True)
        return torch.stack([rescale(row, mean=s["mean"], std=s["std"], to_std=width) for row, s in rows])

    def combined(self, table: Tensor) -> Tensor:
        """Scores [M, B] as one [B]."""
        match self.judges.combine:
            case "mean":
                return ensemble_mean(table)
            case "min":
                return worst_case(table)
            case "uwo":
                return uncertainty_weighted(table, weight=self.judges.weight)


def segment(trajectory: Trajectory, judge: Loaded) -> Segment:
    """The conversation as a reward model reads it, up to the end of the last answer."""
    template, tokenizer, room = judge.template, judge.tokenizer, judge.context
    s = render(trajectory.messages, template, tokenizer, max_len=room, train_on="last")[-1]
    cut = trajectory.stop == Stop.LENGTH and not s.truncated and sum(s.mask) > 1
    return Segment(tokens=s.tokens[:-1], mask=s.mask[:-1]) if cut else s


def scale_of(name: str) -> dict[str, float] | None:
    """Mean and deviation of a reward model's scores, where its run wrote them and they differ at all."""
    path = Path(name) / SCALE
    found = json.loads(path.read_text()) if path.is_file() else None
    return found if found and found["std"] > 0 else None


@torch.inference_mode()
def scores(model: ScalarModel, segments: Sequence[Segment]) -> list[float]:
    """The model's value at the last learned token of each segment."""
    rows = [Segment(tokens=s.tokens, mask=s.mask) for s in segments]
    batch = collate(rows, group=[0] * len(rows))  # one group: a shared prompt is computed once
    batch = batch.to(model.score.weight.device)
    packing = pack(batch.attend, batch.tokens, batch.group)
    hidden = model.flat(batch.tokens[packing.own], packing.positions, packed_attention(packing))
    return model.values(hidden[packing.place[last_token(batch.mask)]]).tolist()


def shapes(reward: str) -> tuple[nn.Module, ...]:
    """The models that a reward's name would load, as shapes without values."""
    judges = Judges.read(reward)
    return () if judges is None else tuple(described(name).model for name in judges.names)
