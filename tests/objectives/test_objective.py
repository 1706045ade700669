"""The record of choices: which combinations are refused and why, what an objective needs, and what it remarks."""

from dataclasses import replace

import pytest

from posttrain.errors import ConfigError
from posttrain.objectives.average import Average
from posttrain.objectives.gates import Gate
from posttrain.objectives.mismatch import Mismatch
from posttrain.objectives.objective import Objective
from posttrain.objectives.regularizers import Entropy, Kl, Proximal
from posttrain.objectives.surrogate import Clip
from posttrain.objectives.token_masks import Focus

FREE = {"ratio": "none", "clip": Clip(kind="none")}


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: Objective(ratio="none"), "nothing to clip"),
        (lambda: Objective(ratio="token", clip=Clip(kind="log")), "reads no ratio"),
        (lambda: Objective(ratio="sequence", clip=Clip(kind="geometric", low=0.4, high=0.4)), "geometric mean is made"),
        (lambda: Objective(ratio="seq"), "is not one of none, token"),
        (lambda: Objective(advantage="grpo"), "is not one of return"),
        (lambda: Objective(keep="some"), "is not one of all"),
        (lambda: Objective(old="policy"), "is not one of learner"),
        (lambda: Objective(average=Average("pair")), "preference"),
        (lambda: Objective(k=4), "no other advantage has sets"),
        (lambda: Objective(advantage="pass_at_k"), "need the size of"),
        (lambda: Objective(ratio="sequence", kl=Kl(where="loss", beta=0.1, corrected=True)), 'Set ratio to "token"'),
        (lambda: Objective(old="sampler", mismatch=Mismatch(kind="truncate")), "count it twice"),
    ],
)
def test_objectives_without_meaning_are_refused(make, advice):
    with pytest.raises(ConfigError, match=advice):
        make()


@pytest.mark.parametrize(
    "objective, needs",
    [
        (Objective(advantage="return", **FREE), set()),
        (Objective(), {"group"}),
        (Objective(advantage="return", keep="mixed", **FREE), {"group"}),
        (Objective(kl=Kl(where="reward", estimator="k1", beta=0.1)), {"group", "reference"}),
        (Objective(advantage="gae"), {"critic"}),
        (Objective(mismatch=Mismatch(kind="mask")), {"group", "sampler"}),
        (Objective(old="sampler"), {"group", "sampler"}),
        (Objective(gate=Gate(kind="tv", high=0.1, against="sampler")), {"group", "sampler"}),
        (Objective(gate=Gate(kind="tv", high=0.1)), {"group"}),
        (Objective(entropy=Entropy(weight=0.1)), {"group", "entropy"}),
        (Objective(entropy=Entropy(target=0.1)), {"group", "entropy"}),
        (Objective(focus=Focus(kind="entropy", share=0.2)), {"group", "entropy"}),
    ],
)
def test_what_an_objective_needs(objective, needs):
    names = ("group", "reference", "critic", "sampler", "entropy")
    assert {name for name in names if getattr(objective, f"needs_{name}")} == needs


def test_what_is_coupled_and_what_corrects_stale_samples():
    coupled = [
        Objective(focus=Focus(kind="entropy", share=0.2)),
        Objective(focus=Focus(kind="covariance", share=0.2)),
        Objective(proximal=Proximal(estimator="abs", weight=1.0, share=0.1)),
    ]
    assert all(o.coupled for o in coupled)
    assert not Objective().coupled and not Objective(proximal=Proximal(estimator="abs", weight=1.0)).coupled
    assert Objective().corrects_stale and not Objective(**FREE).corrects_stale
    assert Objective(proximal=Proximal(estimator="k2", weight=1.0), **FREE).corrects_stale


@pytest.mark.parametrize(
    "objective, remark",
    [
        (Objective(ratio="sequence"), "hardly clips"),
        (Objective(ratio="sequence", clip=Clip(low=3e-4, high=4e-4), average=Average("token")), "by their length"),
        (Objective(clip=Clip(kind="weight")), "lower edge"),
        (Objective(clip=Clip(kind="geometric", low=0.4, high=0.4), average=Average("token")), "counts the length"),
        (Objective(clip=Clip(kind="gamma")), "whole answer"),
        (Objective(**FREE), "fresh"),
        (Objective(clip=Clip(kind="none")), "no trust region"),
        (Objective(old="sampler", ratio="sequence", clip=Clip(low=3e-4, high=4e-4)), "adds up the mismatch"),
        (Objective(kl=Kl(where="reward", estimator="k2", beta=0.1)), "biased"),
    ],
)
def test_unusual_choices_are_remarked(objective, remark):
    assert len(objective.notes()) == 1 and remark in objective.notes()[0]


def test_usual_choices_are_not():
    assert Objective().notes() == []
    assert Objective(clip=Clip(kind="none"), gate=Gate(kind="tv", high=0.1)).notes() == []
    for low in (None, 1.0):
        assert replace(Objective(), clip=Clip(kind="weight", low=low, high=4.0)).notes() == []
    assert Objective(ratio="sequence", clip=Clip(low=0.05, high=0.05)).notes() == []
