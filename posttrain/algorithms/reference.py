"""The policy that preference losses compare with: asked once before training, or at every step, and perhaps moving."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from posttrain import dist
from posttrain.batch import TokenBatch, collate_pairs
from posttrain.data.rows import PairRow, VerdictRow
from posttrain.errors import ConfigError
from posttrain.models.load import Loaded, frozen_copy, frozen_start, load
from posttrain.models.lora import Lora
from posttrain.objectives.preference import moved_reference
from posttrain.train.learner import Learner, outputs

Row = PairRow | VerdictRow


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The policy that the loss compares with, where it has a reference."""

    model: str | None = None
    """Another model with the same tokenizer. None: the policy's own start."""
    when: Literal["before", "live"] = "before"
    """before: it speaks of all rows before the first step, and is not kept. live: it stays, and speaks of each step's
    rows, which begins sooner on large data."""
    every: int = 0
    """Steps after which it follows the policy (TR-DPO), which needs "live". 0: it stays where it is."""
    share: float = 0.6
    """How far it follows: this share of the policy's weights (0.6 every 512 steps in the paper). 1: it becomes the
    policy."""

    def __post_init__(self):
        if self.every < 0 or not 0 < self.share <= 1:
            raise ConfigError(
                f"reference.every = {self.every}, share = {self.share}: steps are 0 or more, and the share lies in "
                "(0, 1]; 1 makes the policy the reference."
            )
        if self.every and self.when == "before":
            raise ConfigError(
                f'reference.every = {self.every} with reference.when = "before": what it said before training would be '
                'of a reference that is gone. Set reference.when = "live".'
            )


class Moving:
    """A frozen model that follows a policy now and then; a part of the checkpoint."""

    def __init__(self, model: nn.Module):
        self.model = model

    @torch.no_grad()
    def follow(self, policy: nn.Module, share: float = 1.0) -> None:
        """Move every weight towards the policy's."""
        for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            mine.copy_(moved_reference(mine, dist.whole(theirs.detach()), share=share))

    def state(self) -> dict[str, Any]:
        """Its weights: nothing else tells where it has been."""
        return dict(self.model.state_dict())

    def load_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.model.load_state_dict(state)


class Comparison:
    """What the reference says of a step's rows. To be made before `run.load`, while the policy is at its start."""

    def __init__(self, cfg: Reference, policy: Learner, loaded: Loaded, rows: Sequence[Row], lora: Lora):
        if cfg.every and cfg.share < 1 and lora.rank:
            raise ConfigError(
                f"reference.share = {cfg.share} with adapters: a share of their two factors is no share of the weights "
                "they make. Set reference.share = 1, or train all weights (lora.rank = 0)."
            )
        self.micro_tokens = policy.optim.micro_tokens
        other = None if cfg.model is None else load(cfg.model).model.requires_grad_(False).eval()
        if other is not None and other.cfg.vocab_size != loaded.model.cfg.vocab_size:
            raise ConfigError(
                f'reference.model = "{cfg.model}" has {other.cfg.vocab_size} tokens and the policy '
                f"{loaded.model.cfg.vocab_size}: log-probabilities can be compared only over one tokenizer."
            )
        self.moving = self.known = None
        if cfg.when == "live":
            copy = frozen_copy if cfg.every else frozen_start
            self.moving = Moving(copy(policy.model) if other is None else other)
        else:
            self.known = reference_logps(policy.model if other is None else other, rows, self.micro_tokens)

    def __call__(self, batch: TokenBatch, rows: Sequence[Row]) -> TokenBatch:
        """The batch of these rows' pairs with `ref_logp`."""
        if self.known is None:
            return batch.with_(ref_logp=outputs(self.moving.model, batch, ("logp",), self.micro_tokens).logp)
        ref = torch.zeros(batch.tokens.shape)
        for i, row in enumerate(rows):
            for side, logp in enumerate(self.known[row.index]):
                ref[2 * i + side, : len(logp)] = logp
        return batch.with_(ref_logp=ref)


def reference_logps(
    model: nn.Module, rows: Sequence[Row], micro_tokens: int | None
) -> dict[int, tuple[Tensor, Tensor]]:
    """What a model says of both answers of every row, token by token.

    The rows are taken in blocks of fixed content, so that a resumed run computes the same bits.
    """
    found = {}
    for start in range(0, len(rows), 64):
        block = rows[start : start + 64]
        logp = outputs(model, collate_pairs([r.pair for r in block]), ("logp",), micro_tokens).logp
        for i, row in enumerate(block):
            found[row.index] = tuple(logp[2 * i + side, : len(row.pair[side].tokens)].clone() for side in (0, 1))
    return found
