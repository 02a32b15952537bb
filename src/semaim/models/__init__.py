"""Models that predict patches: their layers, position embeddings and computational cost; the encoder alone."""
