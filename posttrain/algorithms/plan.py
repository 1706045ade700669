"""What a run would need, from its config and its model's config.json alone: no weights are read.

Where the model's tokenizer is at hand the data are read as training would read them, so that the longest rows are the
true ones; else rows are taken to be as long as they may be.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from posttrain.algorithms import (
    best_of_n,
    group,
    online_preference,
    ppo,
    preference,
    reinforce,
    reward_model,
    rrhf,
    sft,
    unpaired,
    vapo,
)
from posttrain.algorithms.onpolicy import make_critic
from posttrain.data.rows import PairRow, RankingRow, Rows, demonstrations, pairs, rankings, room, tasks, verdicts
from posttrain.errors import ConfigError, DataError
from posttrain.models.heads import ScalarModel
from posttrain.models.load import described
from posttrain.models.lora import add_adapters
from posttrain.records import Segment
from posttrain.train.demand import Demand

_MODULES = {
    module.Config: module
    for module in (sft, reward_model, preference, unpaired, rrhf, online_preference, group, reinforce, ppo, vapo,
                   best_of_n)
}  # fmt: skip
_READERS = {
    sft: demonstrations, reward_model: pairs, preference: pairs,
    unpaired: verdicts, rrhf: rankings, online_preference: tasks,
    group: tasks, reinforce: tasks, ppo: tasks, vapo: tasks, best_of_n: tasks,
}  # fmt: skip


def demand(cfg: Any, rows: Rows) -> Demand:
    """The demand of a method's config, where `rows` are those it trains on."""
    found = _MODULES[type(cfg)].demand(cfg, rows, *_models(cfg))
    return found if rows.path else replace(found, steps=cfg.steps)


def rows_of(cfg: Any, longest: int | None = None) -> Rows:
    """The rows of the data; or stand-ins, with an empty path, where they are not or cannot be read.

    longest: tokens of the longest row, or for methods that sample of the longest prompt. The data are then not read.
    """
    read, loaded = _reader(cfg), described(cfg.model, template=cfg.template)
    if longest is None and loaded.tokenizer is not None:
        try:
            return read(cfg.data, loaded)
        except DataError as error:
            raise DataError(
                f"{error}\nTo plan without reading the data, give --longest N, the tokens of its longest row."
            ) from None
    most = room(cfg.data, loaded)
    if longest is not None and not 0 < longest <= most:
        raise ConfigError(f"--longest {longest}: a row of this model has between 1 and {most} tokens")
    if read is tasks:
        return Rows([], [], "", longest=longest or max(1, most - cfg.sampling.max_tokens))
    length = longest or most
    row = Segment(tokens=(0,) * length, mask=(False,) + (True,) * (length - 1))
    other = Segment(tokens=(1,) * length, mask=row.mask)  # of a pair, sharing nothing
    if read is rankings:
        return Rows([RankingRow(0, (row, other), (1.0, 0.0))] * cfg.batch_size, [], "", longest=length)
    stand_in = row if read is demonstrations else PairRow(0, (row, other))
    return Rows([stand_in] * cfg.batch_size, [], "", longest=length)


def _reader(cfg: Any):
    """What makes rows of the config's data."""
    ranked = isinstance(cfg, reward_model.Config) and cfg.ranked
    return rankings if ranked else _READERS[_MODULES[type(cfg)]]


def _models(cfg: Any) -> tuple[nn.Module, ...]:
    """What the run trains, as shapes."""
    model = described(cfg.model, template=cfg.template).model
    if isinstance(cfg, reward_model.Config) and not isinstance(model, ScalarModel):
        model = ScalarModel(model)
    adapted = add_adapters(model, cfg.lora, base=cfg.model, seed=0)
    return (adapted, make_critic(cfg, described)) if isinstance(cfg, (ppo.Config, vapo.Config)) else (adapted,)
