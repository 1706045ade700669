"""A reward model as the grader of a run: what `posttrain train reward_model` wrote, or a sequence classifier.

The answer is read as text under the reward model's own template, so that its tokenizer need not be the policy's. The
score is the one at the end of the answer; an answer that was cut off has no end mark, and is judged without one.
"""

from collections.abc import Sequence

import torch
from torch import nn

from posttrain.batch import collate
from posttrain.chat.render import render
from posttrain.errors import ConfigError
from posttrain.models.attention import pack, packed_attention
from posttrain.models.heads import ScalarModel
from posttrain.models.load import described, load
from posttrain.objectives.returns import last_token
from posttrain.records import Group, Score, Segment, Stop, Trajectory

PREFIX = "model:"
"""`reward = "model:FOLDER"` names one."""


class ModelReward:
    """Grades all members of a group in one pass; wrap it in `GroupReward`."""

    def __init__(self, name: str):
        """name: a run, a folder or a hub name. Raises ConfigError where that is a model without a scalar head."""
        self.name, self.loaded = name, load(name)
        if not isinstance(self.loaded.model, ScalarModel):
            raise ConfigError(
                f'reward = "{PREFIX}{name}": this model has no scalar head, so it cannot score an answer. Train one '
                "with `posttrain train reward_model`, or name its folder."
            )
        self.model = self.loaded.model.requires_grad_(False).eval()

    def __call__(self, group: Group) -> list[Score]:
        """A score for each member."""
        segments = [self.segment(m) for m in group.members]
        return [Score(value, why=f"{value:.3f} by {self.name}") for value in scores(self.model, segments)]

    def segment(self, trajectory: Trajectory) -> Segment:
        """The conversation as the reward model reads it, up to the end of the last answer."""
        template, tokenizer, room = self.loaded.template, self.loaded.tokenizer, self.loaded.context
        s = render(trajectory.messages, template, tokenizer, max_len=room, train_on="last")[-1]
        cut = trajectory.stop == Stop.LENGTH and not s.truncated and sum(s.mask) > 1
        return Segment(tokens=s.tokens[:-1], mask=s.mask[:-1]) if cut else s


@torch.inference_mode()
def scores(model: ScalarModel, segments: Sequence[Segment]) -> list[float]:
    """The model's value at the last learned token of each segment."""
    rows = [Segment(tokens=s.tokens, mask=s.mask) for s in segments]
    batch = collate(rows, group=[0] * len(rows))  # one group: a shared prompt is computed once
    packing = pack(batch.attend, batch.tokens, batch.group)
    hidden = model.flat(batch.tokens[packing.own], packing.positions, packed_attention(packing))
    return model.values(hidden[packing.place[last_token(batch.mask)]]).tolist()


def shapes(reward: str) -> tuple[nn.Module, ...]:
    """The models that a reward's name would load, as shapes without values."""
    return (described(reward.removeprefix(PREFIX)).model,) if reward.startswith(PREFIX) else ()
