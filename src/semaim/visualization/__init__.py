"""Maps, orders and predictions of a model, as tensors and as figures."""
