"""Tables and plots of the evaluations in an MLflow store."""
