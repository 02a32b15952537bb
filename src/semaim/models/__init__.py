"""The two-stream model, its layers, its fixed positions and its arithmetic cost."""
