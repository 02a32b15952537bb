"""The configuration of a run: composed, checked, named, and what to say about a mistake in it."""
