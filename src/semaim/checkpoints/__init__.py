"""Weights in files: our own checkpoints, and encoders of other projects."""
