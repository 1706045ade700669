"""Losses that learn from preferences without a reward model."""

from posttrain.objectives.preference.menu import MENU, Formula, PreferenceLoss
from posttrain.objectives.preference.pairs import cdpo, dpo, dpo_norm, hinge, ipo, robust

__all__ = ["MENU", "Formula", "PreferenceLoss", "cdpo", "dpo", "dpo_norm", "hinge", "ipo", "robust"]
