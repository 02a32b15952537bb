"""What a model sees and predicts, in numbers and as figures."""
