"""Training of one trial: the loop, freezing, checks, checkpoints, memory and time."""
