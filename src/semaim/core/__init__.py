"""Building blocks without knowledge of models or runs: files, randomness, processes, signals, SLURM, the screen."""
