"""Export of encoders for other libraries."""
