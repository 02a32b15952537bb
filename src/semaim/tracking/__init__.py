"""Copies of runs in MLflow."""

DEFAULT_URI = "sqlite:///mlflow.db"  # of semaim report
