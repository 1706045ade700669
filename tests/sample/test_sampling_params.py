import pytest

from posttrain.errors import ConfigError
from posttrain.sample.base import SamplingParams


def test_defaults_sample_the_model_as_it_is():
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.cuts) == (1.0, 1.0, 0, False)


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("temperature", -0.1, "must be 0 .greedy. or positive"),
        ("temperature", float("nan"), "must be 0 .greedy. or positive"),
        ("temperature", float("inf"), "must be 0 .greedy. or positive"),
        ("top_p", 0.0, r"must lie in \(0, 1\]"),
        ("top_p", 1.5, r"must lie in \(0, 1\]"),
        ("top_k", -1, "0 .keep every token."),
        ("max_tokens", 0, "room for one token"),
        ("stop_ids", (3, -1), "integers from 0"),
        ("stop_ids", ("</s>",), "integers from 0"),
    ],
)
def test_values_without_a_meaning_are_refused(field, value, advice):
    with pytest.raises(ConfigError, match=f"{field} = .*{advice}"):
        SamplingParams(**{field: value})


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match="temperature = -1.*top_p = 2.*max_tokens = 0"):
        SamplingParams(temperature=-1, top_p=2, max_tokens=0)


@pytest.mark.parametrize(
    ("changes", "cuts"), [({"top_p": 0.9}, True), ({"top_k": 5}, True), ({"top_k": 5, "temperature": 0.0}, False)]
)
def test_a_cut_is_known(changes, cuts):
    assert SamplingParams(**changes).cuts is cuts


def test_greedy_is_recorded_at_temperature_one():
    assert SamplingParams(temperature=0.0).recorded_temperature == 1.0
    assert SamplingParams(temperature=0.3).recorded_temperature == 0.3
