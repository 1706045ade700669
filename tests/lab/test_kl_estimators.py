"""The study of KL estimators on a tiny setting: near the reference its claim shows already."""

from posttrain.lab.studies.kl_estimators import STUDY, measure, read


def test_spreads_and_biases_are_those_of_the_estimators(tmp_path):
    settings = dict(STUDY.arms["softmax"], drifts=[0.1, 3.0], prefixes=8, samples=4000)
    cells = {"softmax": {seed: measure(settings, seed, tmp_path) for seed in range(3)}}
    for run in cells["softmax"].values():
        assert 0 < run["exact"][0] < run["exact"][1]
        assert run["spread, k3"][0] < run["spread, k1"][0] and run["bias, k2"][1] > 0.1
    near, far, *_ = read(cells)
    assert near.seen and near.after < 0.2 and far.after > 1
