"""The two-stream model, its layers, position embeddings and computational cost."""
