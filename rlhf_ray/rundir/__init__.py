"""The run directory: the journal of a run, and checkpoints committed atomically."""
