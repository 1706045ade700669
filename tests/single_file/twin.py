"""A learner of the kernel, and beside it the same model under an optimizer of its own, which a script drives.

Before every step the script's side is set to the kernel's weights and optimizer state, so that rounding cannot pile up:
Adam turns a difference near zero into a whole step. Gradients are compared in norm, losses by their values.
"""

import copy

import torch
from torch import Tensor, nn

from posttrain.batch import TokenBatch, collate_groups
from posttrain.models.decoder import Decoder, ModelConfig
from posttrain.records import Group, Score, Segment, Stop, Task, Trajectory
from posttrain.train.learner import Learner, Optim, Part
from posttrain.train.metrics import Metrics


def decoder(vocab: int, seed: int = 0) -> Decoder:
    """The kernel's decoder with random weights, in torch's default type."""
    cfg = ModelConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, initializer_range=0.3,
    )  # fmt: skip
    return Decoder(cfg).initialise(seed).to(torch.get_default_dtype())


class Twin:
    """One network on both sides."""

    def __init__(self, model: nn.Module, *, lr: float = 1e-2, micro: int = 100):
        self.learner = Learner(model, Optim(lr=lr, micro_tokens=micro), total=100)
        self.model = copy.deepcopy(model)
        mine = dict(zip(model.parameters(), self.model.parameters(), strict=True))
        groups = [{"params": [mine[p] for p in g["params"]]} for g in self.learner.optimizer.param_groups]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
        self.drift: list[float] = []

    def logits(self, ids: Tensor) -> Tensor:
        """What the scripts ask of a model: ids [N, T] -> logits [N, T, V]."""
        return self.model.logits(self.model(ids))

    def values(self, ids: Tensor) -> Tensor:
        """What ppo.py asks of a critic: ids [N, T] -> [N, T, 1]."""
        return self.model.score(self.model.decoder(ids))

    def sync(self) -> None:
        """Weights and optimizer state of the kernel."""
        self.model.load_state_dict(self.learner.model.state_dict())
        self.optimizer.load_state_dict(copy.deepcopy(self.learner.optimizer.state_dict()))  # else it is shared

    def step(self, part: Part) -> Metrics:
        """The kernel's step, after the script's side has been set to where it starts."""
        self.sync()
        return self.learner.step(part)

    def check(self, metrics: Metrics, loss: float, norm: float, tolerance: float) -> None:
        """The script's step did as the kernel's: loss, gradient and its norm, and in float64 the weights after it."""
        assert abs(loss - metrics["loss"][0]) <= tolerance * max(1.0, abs(metrics["loss"][0]))
        assert abs(norm - metrics["grad_norm"][0]) <= tolerance * metrics["grad_norm"][0]
        ours, theirs = (
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            for model in (self.model, self.learner.model)
        )
        assert theirs.norm() > 1e-3
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
        self.drift.append(float((ours - theirs) @ theirs / (theirs @ theirs)))
        if tolerance < 1e-8:
            for mine, other in zip(self.model.parameters(), self.learner.model.parameters(), strict=True):
                assert (mine - other).norm() <= tolerance * other.norm()

    def check_drift(self, tolerance: float) -> None:
        """Over all steps: as many as promised, and the differences do not all point one way."""
        assert len(self.drift) >= 5
        assert abs(sum(self.drift)) / len(self.drift) <= tolerance / 10


def segments(ids: Tensor, mask: Tensor, sampled_logp: Tensor | None = None) -> list[Segment]:
    """Rows of a script as records of the kernel, without their padding: the last token is one under the mask."""
    found = []
    for i, row in enumerate(mask):
        end = int(row.nonzero().max()) + 1
        logp = () if sampled_logp is None else tuple(sampled_logp[i, :end].tolist())
        found.append(Segment(tuple(ids[i, :end].tolist()), tuple(row[:end].tolist()), logp))
    return found


def grouped(rows: list[Segment], reward: Tensor) -> tuple[TokenBatch, Tensor]:
    """The batch that the kernel makes of samples in P groups, and its rewards. reward: [P, G]."""
    nobody = Task("", ())
    p, g = reward.shape
    played = [
        Trajectory(nobody, (), (s,), Stop.END, score=Score(float(r)))
        for s, r in zip(rows, reward.flatten(), strict=True)
    ]
    return collate_groups([Group(nobody, tuple(played[i * g : (i + 1) * g])) for i in range(p)])
