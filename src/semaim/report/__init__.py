"""Evaluations in an MLflow store, as tables and plots."""
