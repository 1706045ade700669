"""PPO-ptx: text of pre-training in the policy's optimizer steps, against forgetting (Ouyang et al. 2022, eq. 2).

L(θ) = L_PPO(θ) + weight · (- Σ log π_θ(x_t | x_<t) / tokens)
"""

from dataclasses import dataclass, replace

from posttrain import rng
from posttrain.batch import TokenBatch, collate, weigh
from posttrain.data.rows import Data, demonstrations, pick
from posttrain.errors import ConfigError
from posttrain.models.load import Loaded
from posttrain.objectives.average import Average
from posttrain.objectives.supervised import cross_entropy
from posttrain.records import Segment
from posttrain.train.demand import Demand, peak
from posttrain.train.learner import Outputs, Part, Term
from posttrain.train.metrics import Metrics
from posttrain.train.run import Run


@dataclass(frozen=True, kw_only=True)
class Ptx:
    """Pre-training text in the policy's optimizer steps, against forgetting (PPO-ptx: Ouyang et al. 2022)."""

    weight: float = 0.0
    """Weight of the text's cross-entropy per token beside the policy's loss. 0: no text is read."""
    data: Data = Data(path="builtin:corpus", kind="text", limit=4000)
    """The text: as many documents per optimizer step as answers. `max_len` cuts them."""

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"weight = {self.weight}: a negative weight would unlearn the text; 0 turns it off")


class Text:
    """The text of a run, and its part in each optimizer step."""

    def __init__(self, cfg: Ptx, n: int, loaded: Loaded, run: Run):
        """n: documents per optimizer step."""
        self.cfg, self.n, self.run = cfg, n, run
        self._pad_id = loaded.tokenizer.pad_id
        self._segments = demonstrations(cfg.data, loaded).train if cfg.weight else []

    def part(self, step: int, version: int) -> list[Part]:
        """The documents of the policy's next optimizer step as a part of it; none where there is no text.

        version: optimizer steps that the policy has taken, which chooses them.
        """
        if not self._segments:
            return []
        seed = rng.fold(self.run.settings.seed, "ptx")
        segments = self.run.took(step, pick(self._segments, version, self.n, seed))
        return [Part(weigh(collate(segments, pad_id=self._pad_id), Average("token")), self._loss)]

    def _loss(self, out: Outputs, b: TokenBatch) -> tuple[list[Term], Metrics]:
        value, metrics = cross_entropy(out.logp, b.mask)
        return [Term("ptx", value, self.cfg.weight * b.weights["token"])], {"ptx_nll": metrics["nll"]}


def with_text(answers: Demand, cfg: Ptx, n: int) -> Demand:
    """What a run needs that reads n documents per optimizer step beside its answers: the larger of the two parts.

    Documents are taken to be as long as they may be. answers: the demand without; its last model is the policy.
    """
    if not cfg.weight:
        return answers
    *others, policy = answers.trained
    context = policy.model.cfg.max_position_embeddings
    length = min(cfg.data.max_len or context, context)
    documents = collate([Segment(tokens=(0,) * length, mask=(True,) * length)] * n)
    text = replace(policy, batch=documents, rows=n, needs=("logp",))
    return max(answers, replace(answers, trained=(*others, text)), key=lambda d: peak(d).total)
