"""The configuration of a run: composition, validation, run names and error messages."""
