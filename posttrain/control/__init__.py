"""Control tasks of Gymnasium: the objectives of `posttrain.objectives` where a step is an action and not a token."""
