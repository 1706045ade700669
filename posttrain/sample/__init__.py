"""Samplers: the port (`base`) and the one that shares the learner's weights in this process (`torch`)."""
