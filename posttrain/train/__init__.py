"""The learner, the run folder, checkpoints, schedules, and the glossary of metrics: what every training loop calls."""
