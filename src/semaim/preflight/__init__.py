"""What runs need, checked before they start."""
