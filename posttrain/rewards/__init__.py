"""Rewards: the port and the weighted sum (`base`), and exact checkers (`exact`)."""
