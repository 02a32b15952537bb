"""Images: where they come from, how they are prepared, and which step sees which."""
