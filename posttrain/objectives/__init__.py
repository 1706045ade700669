"""The formulas of post-training: tensors in, tensors out.

No model, no configuration file, no device, no randomness and no average lives here (the average is a matrix of weights,
see `average`). Every function can be called from a test, a notebook or a page of the explainer. This file lists the
public names.
"""

from posttrain.objectives.average import Average, row_weights, token_weights, weight_total
from posttrain.objectives.tokens import (
    TokenStats,
    answers,
    check_shapes,
    detached,
    entropy,
    logprobs_from_hidden,
    masked,
    predicting,
    token_logprobs,
)

__all__ = [
    "Average",
    "TokenStats",
    "answers",
    "check_shapes",
    "detached",
    "entropy",
    "logprobs_from_hidden",
    "masked",
    "predicting",
    "row_weights",
    "token_logprobs",
    "token_weights",
    "weight_total",
]
