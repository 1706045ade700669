"""REINFORCE, VAPO and PPO with all its parts: stopped at an optimizer step and called again, they end in equal bits."""

from dataclasses import replace
from pathlib import Path

import pytest

from algorithms import test_ppo, test_ppo_parts, test_reinforce, test_vapo, toy
from algorithms.test_resume import OPTIM, STEPS, assert_equal_runs
from posttrain.algorithms import ppo, reinforce, vapo
from posttrain.algorithms.ppo import Ptx
from posttrain.algorithms.shaping import Shaping
from posttrain.train.learner import Learner
from posttrain.train.run import RunConfig

RUN = RunConfig(seed=3, threads=1, save_every=3, samples=3)
COMMON = {"steps": STEPS, "eval_every": 2, "optim": OPTIM, "run": RUN, "shaping": Shaping(scale="running")}


def of_reinforce(folder: Path):
    return test_reinforce.config(folder, **COMMON)


def of_vapo(folder: Path):
    return test_vapo.config(folder, prompts=4, **COMMON)


def of_ppo(folder: Path):
    cfg = test_ppo.config(folder, prompts=8, warmup_steps=1, ptx=Ptx(weight=0.5, data=test_ppo_parts.text(folder)),
                          stop_kl=0.05, **COMMON)  # fmt: skip
    kl = replace(cfg.objective.kl, target=0.5, horizon=50)
    return replace(cfg, objective=replace(cfg.objective, kl=kl))


class Killed(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize(("module", "make"), [(reinforce, of_reinforce), (vapo, of_vapo), (ppo, of_ppo)],
                         ids=["reinforce", "vapo", "ppo"])  # fmt: skip
def test_stopped_twice_is_as_never_stopped(tmp_path, monkeypatch, module, make):
    cfg = make(tmp_path)
    cfg = replace(cfg, data=replace(cfg.data, eval_rows=2))
    made, real = [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, *parts: made.append(1) or real(self, *parts))
    toy.run(module, cfg, tmp_path / "whole")
    updates = len(made)

    def until(n: int):
        def step(self, *parts):
            made.append(1)
            if len(made) == n:
                raise Killed
            return real(self, *parts)

        made.clear()
        monkeypatch.setattr(Learner, "step", step)
        with pytest.raises(Killed):
            toy.run(module, cfg, tmp_path / "broken")

    until(updates // 2 + 1)
    until(updates // 4)
    monkeypatch.setattr(Learner, "step", real)
    toy.run(module, cfg, tmp_path / "broken")
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")
