"""Building blocks independent of models and runs: files, randomness, processes, signals, SLURM, terminal output."""
