"""A run on disk: its folder, journal, status and provenance, and the context passed to tasks."""
