"""Two processes that share a model and its rows make the steps that one makes alone, in every loop.

The learner of one process is the oracle. In float32 every step starts from its weights, moments and batch, and losses
and gradients are compared; in float64 the loops run freely, sampling for themselves, and weights are compared.
"""

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from algorithms import (
    test_best_of_n,
    test_group,
    test_ppo,
    test_preference,
    test_reinforce,
    test_reward_model,
    test_sft,
    test_vapo,
    toy,
)
from algorithms.test_adapters import base
from algorithms.test_microbatch import uneven, uneven_pairs
from torch import Tensor

from posttrain import dist
from posttrain.models.hf_format import copy_tensors, hf_name
from posttrain.models.lora import Lora
from posttrain.objectives.preference import PreferenceLoss
from posttrain.train.learner import Learner, Optim
from scale import processes

STEPS = 5
OPTIM = Optim(lr=3e-3, weight_decay=0.1, max_grad_norm=0.5, micro_tokens=40)


def of_sft(folder: Path):
    cfg = test_sft.config(folder, steps=STEPS, batch_size=7, eval_every=2)
    return replace(cfg, data=replace(cfg.data, path=uneven(folder), eval_rows=2))


def of_preference(folder: Path, name: str):
    cfg = test_preference.config(folder, steps=STEPS, batch_size=5, loss=PreferenceLoss(name=name, beta=0.5))
    return replace(cfg, data=replace(cfg.data, path=uneven_pairs(folder), eval_rows=2))


def of_reward_model(folder: Path):
    cfg = test_reward_model.config(folder, steps=STEPS, batch_size=5)
    return replace(cfg, data=replace(cfg.data, path=uneven_pairs(folder), eval_rows=2))


def of_group(folder: Path, preset: str):
    cfg = test_group.config(folder, preset=preset, steps=STEPS, eval_every=2)
    kl = replace(cfg.objective.kl, where="loss", beta=0.1)
    return replace(cfg, objective=replace(cfg.objective, kl=kl), data=replace(cfg.data, eval_rows=3))


def of_ppo(folder: Path):
    return test_ppo.config(folder, steps=2, prompts=8, epochs=1)


def of_best_of_n(folder: Path):
    return test_best_of_n.config(folder, rounds=1, prompts=16, group_size=8, steps=1, epochs=2.0, batch_size=7)


def of_adapters(folder: Path):
    return replace(of_group(folder, "grpo"), model=base(folder, newborn=True), lora=Lora(rank=4))


CASES = {
    "sft": of_sft,
    "recompute": lambda folder: replace(of_sft(folder), optim=Optim(lr=1e-2, recompute=True)),
    "dpo": lambda folder: of_preference(folder, "dpo"),
    "rpo": lambda folder: of_preference(folder, "rpo"),  # two terms, with two averages
    "aot": lambda folder: of_preference(folder, "aot"),  # couples the pairs of a step
    "reward_model": of_reward_model,
    "grpo": lambda folder: of_group(folder, "grpo"),
    "kl_cov": lambda folder: of_group(folder, "kl_cov"),  # couples the tokens of a step
    "ppo": of_ppo,
    "reinforce": lambda folder: test_reinforce.config(folder, steps=STEPS),
    "vapo": lambda folder: test_vapo.config(folder, steps=3, pretrain_steps=0, epochs=1, right=0.3),
    "best_of_n": of_best_of_n,
    "adapters": of_adapters,  # beside frozen weights
}
TYPES = {torch.float32: "float32", torch.float64: "float64"}


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: dist.whole(p.detach()).clone() for name, p in model.named_parameters()}


@contextmanager
def watched(dtype: torch.dtype, steps: list[dict], given: list[dict] | None) -> Iterator[None]:
    """Write down every step of every learner; where steps are given, start each from the state of the given one."""
    real_init, real_step = Learner.__init__, Learner.step

    def init(self, model, optim, *args, **more):
        real_init(self, model.to(dtype), replace(OPTIM, lr=optim.lr, recompute=optim.recompute), *args, **more)

    def step(self, part):
        if given is not None:
            before = given[len(steps)]
            copy_tensors(self.model, {hf_name(name): x for name, x in before["weights"].items()})
            self.load_state(before["state"])
            part = part._replace(batch=before["batch"])
        kept = {"batch": part.batch}
        if given is None and dtype is torch.float32:
            kept |= {"weights": weights(self.model), "state": copy.deepcopy(self.state())}
        kept["metrics"] = real_step(self, part)
        if dtype is torch.float64:
            kept["after"] = weights(self.model)
        else:
            kept["slopes"] = {
                name: dist.whole(p.grad).clone() for name, p in self.model.named_parameters() if p.requires_grad
            }
        steps.append(kept)
        return kept["metrics"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "__init__", init)
        patch.setattr(Learner, "step", step)
        yield


def walk(cfg, dtype: torch.dtype, folder: Path, given: list[dict] | None = None) -> list[dict]:
    """The steps of a loop."""
    steps: list[dict] = []
    with watched(dtype, steps, given):
        toy.run(sys.modules[type(cfg).__module__], cfg, folder)
    return steps


def together(cfg, folder: Path) -> None:
    """In each of two processes: the loop in both types, in float32 along the steps that one process has made."""
    with dist.joined():
        for dtype, name in TYPES.items():
            alone = torch.load(folder / f"{name}.one", weights_only=False)
            found = walk(cfg, dtype, folder / f"{name}-two", alone if dtype is torch.float32 else None)
            if dist.rank() == 0:
                torch.save(found, folder / f"{name}.two")


@pytest.fixture(scope="module", params=CASES)
def steps(request, tmp_path_factory) -> dict[str, tuple[list[dict], list[dict]]]:
    """By type: the steps of one process, and of two."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = CASES[request.param](folder)
    for dtype, name in TYPES.items():
        torch.save(walk(cfg, dtype, folder / f"{name}-one"), folder / f"{name}.one")
    assert processes.run(2, together, cfg, folder, log=folder / "log") == [0, 0], processes.written(folder / "log", 0)
    return {
        name: tuple(torch.load(folder / f"{name}.{n}", weights_only=False) for n in ("one", "two"))
        for name in TYPES.values()
    }


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def number(entry) -> float:
    if not isinstance(entry, tuple):
        return float(entry)
    total, count = map(float, entry)
    return total / count if count else math.nan  # nothing to count in this step


def test_losses_and_gradients_from_the_same_state(steps):
    one, two = steps["float32"]
    assert len(one) == len(two) >= 2
    for a, b in zip(one, two, strict=True):
        assert a["metrics"].keys() == b["metrics"].keys()
        for name in a["metrics"].keys() - {"accuracy"}:  # at the reference, rounding decides the sign of a margin
            want = pytest.approx(number(b["metrics"][name]), rel=1e-4, abs=1e-6, nan_ok=True)
            assert number(a["metrics"][name]) == want, name
        assert number(a["metrics"]["loss"]) == pytest.approx(number(b["metrics"]["loss"]), rel=1e-5, abs=1e-6)
        mine, theirs = flat(a["slopes"]), flat(b["slopes"])
        assert mine.norm() > 1e-3
        assert (mine - theirs).norm() <= 1e-5 * mine.norm()


def test_weights_after_five_steps(steps):
    one, two = steps["float64"]
    assert len(one) == len(two) >= 4
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a["batch"].tokens, b["batch"].tokens)
        mine, theirs = flat(a["after"]), flat(b["after"])
        assert (mine - theirs).abs().max() <= 1e-9
    assert (flat(one[-1]["after"]) - flat(one[1]["after"])).abs().max() > 1e-3
