"""Encoders written for other libraries."""
