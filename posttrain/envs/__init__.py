"""Environments: the port (`base`) and the only loop that talks to them (`rollout`)."""
