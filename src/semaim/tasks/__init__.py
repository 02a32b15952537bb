"""Tasks of a run: pretraining, evaluation, pictures, export of features."""
