"""A run on disk: its folder, its journal, what made it, and what a task sees of it."""
