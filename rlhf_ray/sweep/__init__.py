"""Hyper-parameter sweeps with Ray Tune: one short file, trials that share what is frozen, a recipe at the end."""
