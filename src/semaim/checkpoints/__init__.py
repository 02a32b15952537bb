"""Weights in files: checkpoints of semaim, and encoders of other projects."""
